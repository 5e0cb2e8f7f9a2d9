"""Which boxes does refinement change, for better and for worse?

Detections of an annotated split are matched to annotations (same class, IoU
from 0.5), before and after. The last lines say how many boxes fit better and
how many worse. OUT_DIR has pictures of those that gained most, of typical ones
and of those that lost most, with the maps of their log-density. Magenta and
dotted is the annotation, orange and dashed the detector's box, green the
refined one.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

import mmcv
import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.engine.config_options import add_model_arguments
from mmdet_ebm.evaluation.density_fit import match_batch
from mmdet_ebm.explorer.look import detect
from mmdet_ebm.models import EnergyDetector
from mmdet_ebm.models.detectors.refinement import to_original_frame
from mmdet_ebm.models.energy_map import compute_energy_map
from mmdet_ebm.visualization import EnergyMapFigure


@dataclass(frozen=True)
class Change:
    """A matched detection, in the image's pixels.

    Attributes:
        path: File of the image.
        label: Its class.
        score: Its score.
        box: (4,) the refined box.
        truth: (4,) the annotation.
        before: IoU of the detector's box with the annotation.
        after: IoU of the refined one.
    """

    path: str
    label: int
    score: float
    box: Tensor
    truth: Tensor
    before: float
    after: float

    @property
    def gain(self) -> float:
        """How much of the IoU refinement added."""
        return self.after - self.before


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument(
        '--split', choices=['val', 'test'], default='val', help='default: val'
    )
    parser.add_argument(
        '--number',
        type=int,
        default=3,
        help='pictures of each of the three kinds (default: 3)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out detections of a lower score (default: 0.3)',
    )
    parser.add_argument(
        '--out-dir',
        type=Path,
        default=Path('changes'),
        help='folder for the pictures (default: changes)',
    )
    args = parser.parse_args()
    if args.number < 1:
        parser.error(f'--number must be at least 1, got {args.number}')
    return args


@torch.no_grad()
def find_changes(
    model: EnergyDetector, cfg: Config, args: argparse.Namespace
) -> list[Change]:
    """All matched detections of the split."""
    loader = Runner.build_dataloader(cfg[f'{args.split}_dataloader'])
    changes = []
    for batch in tqdm(loader, desc=args.split, unit='batch', disable=None):
        data = model.data_preprocessor(batch, False)
        samples = data['data_samples']
        found = model.detect(data['inputs'], samples).instances
        pairs = match_batch(found, samples, score_thr=args.score_thr)
        for each, sample, (rows, truth) in zip(found, samples, pairs):
            matched = each[rows]
            initial = matched.get('initial_bboxes', matched.bboxes)
            columns = (
                matched.labels,
                matched.scores,
                bbox_overlaps(initial, truth, is_aligned=True),
                bbox_overlaps(matched.bboxes, truth, is_aligned=True),
            )
            wanted = InstanceData(bboxes=truth)
            boxes, wanted = (
                to_original_frame(part, sample.metainfo).bboxes.cpu()
                for part in (matched, wanted)
            )
            changes += [
                Change(sample.img_path, label, score, *corners, before, after)
                for corners, (label, score, before, after) in zip(
                    zip(boxes, wanted),
                    zip(*(column.tolist() for column in columns)),
                )
            ]
    return changes


def chosen(changes: list[Change], number: int) -> dict[str, list[Change]]:
    """The largest gains, those around the median, and the largest losses."""
    order = sorted(changes, key=lambda each: -each.gain)
    middle = max(0, (len(order) - number) // 2)
    return dict(
        better=order[:number],
        typical=order[middle : middle + number],
        worse=order[::-1][:number],
    )


def draw(model: EnergyDetector, change: Change, out: Path) -> None:
    """Write the picture of one."""
    image = mmcv.imread(change.path)
    found, sample = detect(model, image)
    instances = to_original_frame(found.instances[0], sample.metainfo).cpu()
    # Alone, the image may be padded otherwise: look for the same box.
    overlaps = bbox_overlaps(change.box[None], instances.bboxes)[0]
    row = int((overlaps * (instances.labels == change.label)).argmax())
    energy = compute_energy_map(
        model.energy_model, found, 0, row, sample.scale_factor
    )
    figure = EnergyMapFigure(
        image[..., ::-1],
        energy,
        f'{model.dataset_meta["classes"][change.label]}, score '
        f'{change.score:.2f}, IoU {change.before:.2f} before and '
        f'{change.after:.2f} after;',
        change.truth,
    )
    figure.save(out)


def summary(changes: list[Change]) -> str:
    """How many boxes fit better and worse."""
    gains = np.array([each.gain for each in changes])
    before, after = (
        np.mean([getattr(each, name) for each in changes])
        for name in ('before', 'after')
    )
    return (
        f'{len(changes)} boxes match an annotation: '
        f'{100 * np.mean(gains > 0.01):.0f} % fit better, '
        f'{100 * np.mean(gains < -0.01):.0f} % worse, by an IoU of more than '
        f'0.01. Mean IoU {before:.3f} before and {after:.3f} after.'
    )


def main() -> None:
    args = parse_args()
    with exit_with_message():
        cfg = Config.fromfile(args.config)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        model = build_model(cfg, args.checkpoint, args.device)
        require_energy_model(model)
        changes = find_changes(model, cfg, args)
        if not changes:
            raise ValueError(
                f'no detection of {args.split} matches an annotation; try a '
                'lower --score-thr'
            )
        args.out_dir.mkdir(parents=True, exist_ok=True)
        rows = []
        for kind, some in chosen(changes, args.number).items():
            for number, change in enumerate(some):
                out = args.out_dir / f'{kind}_{number}.jpg'
                draw(model, change, out)
                rows.append(
                    [
                        kind,
                        Path(change.path).name,
                        model.dataset_meta['classes'][change.label],
                        f'{change.score:.2f}',
                        f'{change.before:.3f}',
                        f'{change.after:.3f}',
                        out,
                    ]
                )
    heads = ['', 'image', 'class', 'score', 'IoU before', 'after', 'picture']
    print(tabulate(rows, heads, disable_numparse=True))
    print(summary(changes))


if __name__ == '__main__':
    main()
