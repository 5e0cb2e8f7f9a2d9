"""Throw generated input at the public entry points, and count what comes back.

  python -m benchmarks.fuzz --minutes 3 --seed 0

A case passes if it gives a result that makes sense, or an error that says what
is wrong with the input (ValueError or FileNotFoundError). Anything else is a
failure: another exception, 20 s of processor time or two minutes, a box that
is not finite, a file outside of the output folder. A failure is printed with
the number of its case; --target and --case run that one alone, with its
traceback.
"""

import argparse
import io
import json
import logging
import math
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tabulate import tabulate

from mmdet_ebm.apis import EnergyDetInferencer
from mmdet_ebm.apis.checks import load_checkpoint_file, require_weights
from mmdet_ebm.apis.inputs import expand_inputs
from mmdet_ebm.apis.results_folder import ResultsFolder
from mmdet_ebm.core import BoxAscent, GaussianMixtureNoise, IoUNetAscent
from mmdet_ebm.datasets.coco_check import check_coco_split
from mmdet_ebm.decoding import read_image
from mmdet_ebm.models import UncertaintyEstimator
from mmdet_ebm.ops import prroi_pool
from mmdet_ebm.tracking import Region, find_tracks, read_frame

CONFIG = (
    Path(__file__).resolve().parent.parent
    / 'configs/bccd/faster-rcnn_r18-half_nce-plus_bccd.py'
)
# Of processor time, and of waiting for something that never comes.
CPU_SECONDS, SECONDS = 20, 120
STRANGE = (
    None, True, '', 'x', -1, 0, 1, 3, 10**5, 0.5, 1e-30, 1e30, math.inf,
    -math.inf, math.nan, [], [0.1], [-1, 2], [[1], [2, 3]], {}, {'a': 1},
)  # fmt: skip


class Wrong(Exception):
    """A result that makes no sense."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Wrong(what)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut, flipped, repeated or replaced bytes."""
    kind = draw.choice(['cut', 'flip', 'repeat', 'noise', 'whole'])
    if kind == 'cut':
        return data[: draw.randrange(len(data))]
    if kind == 'noise':
        return draw.randbytes(draw.randrange(200))
    changed = bytearray(data)
    for _ in range(draw.choice([1, 3, 30])):
        at = draw.randrange(len(changed))
        if kind == 'flip':
            changed[at] = draw.randrange(256)
        elif kind == 'repeat':
            changed[at:at] = changed[at : at + draw.randrange(50)]
    return bytes(changed)


def strange_json(value: Any, draw: random.Random) -> Any:
    """The same JSON with a few values replaced or left out."""
    if draw.random() < 0.05:
        return draw.choice(STRANGE)
    if isinstance(value, dict):
        return {
            key: strange_json(inner, draw)
            for key, inner in value.items()
            if draw.random() > 0.03
        }
    if isinstance(value, list):
        return [strange_json(inner, draw) for inner in value]
    return value


def picture(draw: random.Random) -> bytes:
    """An image file of some kind and size."""
    shape = [draw.choice([1, 2, 7, 40, 90]) for _ in range(2)]
    channels = draw.choice([(), (3,), (4,)])
    dtype = draw.choice([np.uint8, np.uint16])
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(
        0, np.iinfo(dtype).max, (*shape, *channels), dtype
    )
    suffix = draw.choice(['.png', '.jpg', '.bmp', '.tif', '.webp'])
    if suffix in ('.jpg', '.bmp', '.webp'):
        pixels = pixels.astype(np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def strange_name(draw: random.Random) -> str:
    letters = 'ab .,[]*?!#%&"\'\\$~()é中\n-'
    name = ''.join(draw.choices(letters, k=draw.randint(1, 12)))
    return f'{name}{draw.choice([".jpg", ".PNG", ".tif", ".jpg.jpg"])}'


class Fuzz:
    """The targets; each takes a source of randomness and an empty folder."""

    def __init__(self, folder: Path) -> None:
        init_default_scope('mmdet')
        cfg = Config.fromfile(CONFIG)
        cfg.load_from = None
        cfg.test_dataloader.dataset.pipeline[1].scale = (96, 72)
        cfg.model.detector.test_cfg.rcnn.score_thr = 0.0
        cfg.model.detector.test_cfg.rcnn.max_per_img = 5
        from mmdet.registry import MODELS

        torch.manual_seed(0)
        self.model = MODELS.build(cfg.model)
        state = self.model.state_dict()
        state['energy_model.head.fc_logdensity.weight'].normal_()
        self.checkpoint = folder / 'model.pth'
        torch.save(
            dict(
                state_dict=state,
                meta=dict(dataset_meta=dict(classes=cfg.metainfo.classes)),
            ),
            self.checkpoint,
        )
        self.config = folder / 'config.py'
        cfg.dump(self.config)
        self.inferencer = EnergyDetInferencer(
            cfg, self.checkpoint, device='cpu', show_progress=False
        )

    def boxes(self, draw: random.Random, folder: Path) -> None:
        """Pooling and ascents on any boxes and maps."""
        torch.manual_seed(draw.randrange(2**32))
        features = torch.randn(
            2, 3, draw.randint(1, 20), draw.randint(1, 20)
        ) * draw.choice([1, 1e-20, 1e20])
        if draw.random() < 0.2:
            features[0, 0, 0, 0] = draw.choice([math.nan, math.inf])
        corners = torch.tensor(
            [
                [
                    draw.choice(
                        [draw.uniform(-5, 25), draw.gauss(0, 1e6), math.inf]
                        + [math.nan, 0.0, 3.0, 3.0001, 1e38]
                    )
                    for _ in range(4)
                ]
                for _ in range(draw.randint(0, 8))
            ]
        ).view(-1, 4)
        index = torch.tensor([draw.choice([0, 1, 1, -1, 2])]).float()
        rois = torch.cat([index.expand(len(corners), 1), corners], 1)
        size = draw.randint(1, 7)
        pooled = [
            prroi_pool(features, rois, size, 0.5, method)
            for method in ('cells', 'prefix')
        ]
        sane = corners.isfinite().all(1) & (index == 1)
        for values in pooled:
            require(values.shape[0] == len(rois), 'a box is missing')
            require(bool(values[sane].isfinite().all()), 'pooled nonsense')
        sane &= (corners[:, 2:] > corners[:, :2]).all(1)
        start = corners[sane]

        def logdensity(boxes: torch.Tensor) -> torch.Tensor:
            rows = boxes.reshape(-1, 4)
            values = prroi_pool(
                features[1:], torch.cat([rows[:, :1] * 0, rows], 1), 2, 0.5
            )
            return values.sum((1, 2, 3)).view(boxes.shape[:-1])

        for ascent in (BoxAscent(), IoUNetAscent()):
            end = ascent(logdensity, start).y
            require(bool(end.isfinite().all()), f'{ascent} left the numbers')

    def images(self, draw: random.Random, folder: Path) -> None:
        """Damaged images and arrays."""
        path = folder / 'x.jpg'
        path.write_bytes(damaged(picture(draw), draw))
        content: Any = path
        if draw.random() < 0.2:
            shape = [draw.randint(0, 5) for _ in range(draw.randint(0, 4))]
            content = np.zeros(
                shape, draw.choice([np.uint8, np.uint16, np.float32, bool])
            )
        image = read_image(content)
        require(
            image.dtype == np.uint8 and image.ndim == 3 and image.size > 0,
            f'read {image.shape} of {image.dtype}',
        )

    def inference(self, draw: random.Random, folder: Path) -> None:
        """A folder of odd images through the whole model, to files."""
        given, out = folder / 'in', folder / 'out'
        given.mkdir()
        for _ in range(draw.randint(1, 3)):
            data = picture(draw)
            if draw.random() < 0.5:
                data = damaged(data, draw)
            (given / strange_name(draw)).write_bytes(data)
        before = set(folder.rglob('*')) | {out}
        for _ in range(2):
            found = self.inferencer(given, out_dir=out, pred_score_thr=0.0)
            for prediction in filter(None, found['predictions']):
                boxes = np.array(prediction['bboxes'], float).reshape(-1, 4)
                require(
                    bool(np.isfinite(boxes).all()), 'a box that is not finite'
                )
        stray = {
            path
            for path in set(folder.rglob('*')) - before
            if out not in path.parents
        }
        require(not stray, f'files outside of the output folder: {stray}')

    def checkpoints(self, draw: random.Random, folder: Path) -> None:
        """Checkpoints of which bytes or entries are damaged."""
        path = folder / 'x.pth'
        if draw.random() < 0.5:
            data = self.checkpoint.read_bytes()
            path.write_bytes(damaged(data, draw))
        else:
            content = torch.load(self.checkpoint, weights_only=True)
            state = content['state_dict']
            for _ in range(draw.randint(1, 3)):
                key = draw.choice(list(state))
                state[key] = draw.choice(
                    [*STRANGE, torch.zeros(2), torch.tensor(math.nan)]
                )
            content = strange_json(content, draw)
            torch.save(content, path)
        load_checkpoint_file(path)
        require_weights(self.model, path)

    def coco_files(self, draw: random.Random, folder: Path) -> None:
        """COCO folders of which entries are damaged."""
        (folder / 'annotations').mkdir()
        (folder / 'val2017').mkdir()
        names = ['a.jpg', 'b.jpg']
        for name in names:
            (folder / 'val2017' / name).write_bytes(picture(draw))
        content = dict(
            images=[
                dict(id=i, file_name=name, width=40, height=40)
                for i, name in enumerate(names)
            ],
            annotations=[
                dict(
                    id=n,
                    image_id=n % 2,
                    category_id=1 + n,
                    bbox=[1, 2, 30.0, 4],
                    area=120.0,
                    iscrowd=0,
                )
                for n in range(4)
            ],
            categories=[dict(id=1 + n, name=str(n)) for n in range(4)],
        )
        text = json.dumps(strange_json(content, draw))
        if draw.random() < 0.2:
            text = damaged(text.encode(), draw).decode(errors='replace')
        (folder / 'annotations/instances_val2017.json').write_text(text)
        with redirect_stderr(io.StringIO()):
            report = check_coco_split(folder, 'val', 2, subset=True)
        require(bool(report.facts or report.errors), 'an empty report')

    def tracks(self, draw: random.Random, folder: Path) -> None:
        """Sequences whose boxes and frames are damaged, and their patches."""
        for number in range(draw.randint(1, 3)):
            place = folder / f'video{number}' / 'img'
            place.mkdir(parents=True)
            count = draw.randint(1, 3)
            for frame in range(count):
                (place / f'{frame:04d}.jpg').write_bytes(
                    damaged(picture(draw), draw)
                    if draw.random() < 0.3
                    else picture(draw)
                )
            lines = '\n'.join(
                draw.choice([',', ' ', '\t', ';']).join(
                    str(
                        draw.choice([1, 5, 20, 0, -3, 1e30, 'nan', 1e308, 9.5])
                    )
                    for _ in range(4)
                )
                for _ in range(count)
            )
            (place.parent / 'groundtruth_rect.txt').write_bytes(
                damaged(lines.encode(), draw)
                if draw.random() < 0.3
                else lines.encode()
            )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # they name what is left out
            tracks = find_tracks(folder, 'otb')
        for track in tracks:
            boxes = track.boxes[track.present]
            require(bool((boxes[:, 2:] > boxes[:, :2]).all()), 'an empty box')
            for path, box in zip(track.frames, track.boxes):
                frame = read_frame(path)
                if frame is None or not np.isfinite(box).all():
                    continue
                region = Region.around(box, draw.choice([1.0, 2.5, 5.0]), 16)
                patch = region.cut(frame)
                require(patch.shape == (16, 16, 3), f'a patch {patch.shape}')
                require(
                    bool(np.isfinite(region.to_patch(box)).all()),
                    'a box that is not finite',
                )

    def options(self, draw: random.Random, folder: Path) -> None:
        """Options of the parts that configs name."""
        kind = draw.choice(
            [BoxAscent, IoUNetAscent, UncertaintyEstimator]
            + [GaussianMixtureNoise]
        )
        names = dict.fromkeys(
            kind.__init__.__annotations__
            if isinstance(kind, type)
            else kind.__annotations__
        )
        names.pop('return', None)
        given = {
            name: draw.choice(STRANGE)
            for name in names
            if draw.random() < 0.2 or kind is GaussianMixtureNoise
        }
        part = kind(**given)
        boxes = torch.tensor([[0.0, 0, 4, 8]])
        if isinstance(part, (BoxAscent, IoUNetAscent)):
            if part.num_steps > 50:
                return
            end = part(lambda y: -y.square().sum(-1), boxes).y
            require(bool(end.isfinite().all()), f'{part} left the numbers')
        elif isinstance(part, UncertaintyEstimator):
            part(lambda y: -y.square().sum(-1), boxes)
        else:
            noise = part.sample((2, 4), boxes)
            require(bool(noise.isfinite().all()), f'{part} drew {noise}')

    def inputs(self, draw: random.Random, folder: Path) -> None:
        """Folders, links and patterns of odd names."""
        for _ in range(draw.randint(0, 4)):
            name = folder / strange_name(draw)
            if name.exists() or name.is_symlink():
                continue
            if draw.random() < 0.3:
                name.mkdir()
            elif draw.random() < 0.3:
                name.symlink_to(folder / strange_name(draw))
            else:
                name.touch()
        entry = draw.choice(['', '/*', '/**/*.jpg', f'/{strange_name(draw)}'])
        found = expand_inputs(
            f'{folder}{entry}', draw.random() < 0.5, exclude=folder / 'out'
        )
        names = [source.name for source in found]
        require(len(names) == len({*names}), 'two results of one name')
        require(
            all(
                not Path(name).is_absolute() and '..' not in Path(name).parts
                for name in names
            ),
            f'names that lead out of the folder: {names}',
        )

    def results_folders(self, draw: random.Random, folder: Path) -> None:
        """What an earlier run, or anybody, left in the output folder."""
        out = folder / 'out'
        out.mkdir()
        (folder / 'keep.json').touch()
        record = dict(
            name=draw.choice(['a.jpg', '../keep', str(folder / 'keep')]),
            path=None,
            signature='1',
            details=dict(size=[3, 4]),
        )
        lines = [
            json.dumps(strange_json(record, draw))
            for _ in range(draw.randint(0, 3))
        ]
        (out / 'images.jsonl').write_bytes(
            damaged('\n'.join([*lines, '']).encode() + b'\n', draw)
        )
        (out / 'settings.json').write_bytes(
            damaged(json.dumps(strange_json(record, draw)).encode(), draw)
        )
        written = ResultsFolder(out, record, overwrite=draw.random() < 0.5)
        written.finished('a.jpg', '1')
        written.num_frames('a.jpg', '1')
        require((folder / 'keep.json').exists(), 'a file outside was removed')


TARGETS = MappingProxyType(
    {
        name: method
        for name, method in vars(Fuzz).items()
        if not name.startswith('_')
    }
)


def run_case(
    fuzz: Fuzz,
    target: Callable[[Fuzz, random.Random, Path], None],
    seed: str,
) -> str:
    """'result', 'refused', or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        signal.alarm(SECONDS)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            with redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                target(fuzz, random.Random(seed), Path(folder))
        except (ValueError, FileNotFoundError):
            return 'refused'
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = frames[-2 if isinstance(error, TimeoutError) else -1]
            return (
                f'{type(error).__name__}: {str(error)[:120]} '
                f'({Path(place.filename).name}:{place.lineno})'
            )
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
    return 'result'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--minutes', type=float, default=3.0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--target', choices=TARGETS, help='this one alone')
    parser.add_argument('--case', type=int, help='this case alone')
    return parser.parse_args()


def main() -> None:
    args = parse_args()

    def too_long(*_: object) -> None:
        raise TimeoutError('it takes too long')

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGPROF, too_long)
    logging.disable(logging.WARNING)
    getattr(cv2.utils, 'logging', cv2).setLogLevel(0)  # silent
    targets = {args.target: TARGETS[args.target]} if args.target else TARGETS
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        if args.case is not None:
            seed = f'{args.seed} {args.target} {args.case}'
            with tempfile.TemporaryDirectory() as place:
                TARGETS[args.target](fuzz, random.Random(seed), Path(place))
            return
        counts = {name: Counter[str]() for name in targets}
        end = time.monotonic() + 60 * args.minutes
        seconds = dict.fromkeys(targets, 0.0)
        while time.monotonic() < end:
            # Each target gets the same time, not the same number of cases.
            name = min(seconds, key=lambda name: seconds[name])
            start = time.monotonic()
            case = counts[name].total()
            outcome = run_case(
                fuzz, targets[name], f'{args.seed} {name} {case}'
            )
            seconds[name] += time.monotonic() - start
            if outcome not in ('result', 'refused'):
                print(f'{name} case {case}: {outcome}', flush=True)
                outcome = 'failed'
            counts[name][outcome] += 1
    kinds = ('result', 'refused', 'failed')
    rows = [
        [name, count.total(), *(count[kind] for kind in kinds)]
        for name, count in counts.items()
    ]
    print(f'seed {args.seed}, {args.minutes:g} minutes\n')
    print(tabulate(rows, ['target', 'cases', *kinds], tablefmt='github'))
    sys.exit(any(count['failed'] for count in counts.values()))


if __name__ == '__main__':
    main()
