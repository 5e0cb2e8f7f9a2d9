"""What refinement does to a detector when its energy model is a bad one.

Energy models are trained in five wrong ways on each frozen detector. Their
densities are fitted on val as after any training. A user who switches
refinement on must not lose AP: the table shows the difference on test, and
that of votes among the detector's own boxes, which ask no energy model.

  python -m studies.never_worse CONFIG plain0.pth plain1.pth plain2.pth
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmdet_ebm.evaluation.bootstrap import METRICS
from mmdet_ebm.evaluation.coco_matching import part_of
from mmdet_ebm.files import write_json, write_text

from . import compare_stages
from .files import (
    config_name,
    interval,
    read_annotations,
    table,
    train_once,
)

_NOISE = 0.1  # of annotations, relative to their boxes
_FEW = 30  # images
_STEPS = 20


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.never_worse',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', type=Path, help='energy config')
    parser.add_argument(
        'plain',
        nargs='+',
        type=Path,
        help='checkpoints of the plain detector, one for each seed; one alone '
        'is used with every seed',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument(
        '--cases', nargs='+', choices=CASES, default=list(CASES)
    )
    parser.add_argument(
        '--epochs',
        type=int,
        help='of each training (default: those of the config)',
    )
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/never_worse')
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='JSON file of the figures; the table goes beside it (default: '
        'WORK_DIR/never_worse.json)',
    )
    args = parser.parse_args(arguments)
    if len(args.plain) == 1:
        args.plain *= len(args.seeds)
    if len(args.plain) != len(args.seeds):
        parser.error('expected one plain checkpoint, or one for each seed')
    return args


def untrained(cfg: Config, folder: Path, seed: int) -> None:
    """The weights of the first step: its length is zero."""
    _train_steps(cfg, 1)
    cfg.optim_wrapper.optimizer.lr = 0.0


def hardly_trained(cfg: Config, folder: Path, seed: int) -> None:
    """A few steps."""
    _train_steps(cfg, _STEPS)


def cropped(cfg: Config, folder: Path, seed: int) -> None:
    """A pipeline whose crops cut objects."""
    pipeline = cfg.train_dataloader.dataset.pipeline
    crop = dict(type='RandomCrop', crop_size=(0.5, 0.5))
    crop.update(crop_type='relative_range', allow_negative_crop=True)
    pipeline.insert(len(pipeline) - 1, crop)
    cfg.keep_crops = True


def noisy(cfg: Config, folder: Path, seed: int) -> None:
    """Annotations that are off by a tenth of the box."""
    random = np.random.default_rng(seed)

    def shake(content: dict) -> None:
        for each in content['annotations']:
            x, y, width, height = each['bbox']
            noise = _NOISE * random.standard_normal(4)
            new = width * np.exp(noise[2]), height * np.exp(noise[3])
            x += width * noise[0] + (width - new[0]) / 2
            y += height * noise[1] + (height - new[1]) / 2
            each['bbox'] = [x, y, *new]
            each['area'] = float(np.prod(new))

    _change_annotations(cfg, folder, shake)


def few_images(cfg: Config, folder: Path, seed: int) -> None:
    """Hardly any training images."""
    random = np.random.default_rng(seed)

    def drop(content: dict) -> None:
        found = sorted({each['image_id'] for each in content['annotations']})
        kept = random.choice(found, _FEW, replace=False).tolist()
        content.update(part_of(content, kept))

    _change_annotations(cfg, folder, drop)


CASES: dict[str, Callable[[Config, Path, int], None]] = {
    'untrained': untrained,
    f'{_STEPS} steps': hardly_trained,
    'crops cut boxes': cropped,
    f'annotations off by {_NOISE}': noisy,
    f'{_FEW} images': few_images,
}


def _train_steps(cfg: Config, number: int) -> None:
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=number, val_interval=number
    )
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=number)


def _change_annotations(
    cfg: Config, folder: Path, change: Callable[[dict], None]
) -> None:
    dataset = cfg.train_dataloader.dataset
    content = read_annotations(dataset)
    change(content)
    new = folder / 'train.json'
    write_json(new, content)
    dataset.ann_file = str(new.resolve())


def train(
    args: argparse.Namespace, case: str, seed: int, plain: Path
) -> tuple[Path, Path]:
    """The config of a case, and the checkpoint of its training."""
    name = case.replace(' ', '-')
    folder = args.work_dir.resolve() / name / f'seed{seed}'
    cfg = Config.fromfile(args.config)
    CASES[case](cfg, folder, seed)
    by_epoch = cfg.train_cfg.get('type') != 'IterBasedTrainLoop'
    config = folder.with_suffix('.py')
    config.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(config))
    checkpoint = train_once(
        config,
        folder / 'work',
        seed,
        plain.resolve(),
        max_epochs=args.epochs if by_epoch else None,
    )
    return config, checkpoint


def to_markdown(cases: dict[str, dict]) -> str:
    """Differences of the cases, in per cent with their intervals."""
    rows = [_row(case, each, 'refined') for case, each in cases.items()]
    first = next(iter(cases.values()))
    if 'voted' in first['stages']:  # no energy model, so the same in all
        rows.append(_row('votes alone', first, 'voted'))
    return table(rows, ['minus plain', *METRICS, 'AP, seed by seed'])


def _row(name: str, figures: dict, stage: str) -> list[str]:
    differences = figures['differences'][f'{stage} - plain']
    runs = (figures['stages'][each]['runs'] for each in (stage, 'plain'))
    seeds = [f'{100 * (a["AP"] - b["AP"]):+.2f}' for a, b in zip(*runs)]
    intervals = (interval(differences[metric], 2) for metric in METRICS)
    return [name, *intervals, ', '.join(seeds)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    out = args.out or args.work_dir / 'never_worse.json'
    cases = {}
    for case in args.cases:
        trained = [
            train(args, case, seed, plain)
            for seed, plain in zip(args.seeds, args.plain)
        ]
        words = [trained[0][0], *(checkpoint for _, checkpoint in trained)]
        file = args.work_dir / f'{case.replace(" ", "-")}.json'
        words += ['--stages', 'plain', 'voted', 'refined', '--out', file]
        compare_stages.main([str(word) for word in words])
        # The file names the config of the case.
        cases[case] = dict(
            json.loads(file.read_text()), config=config_name(args.config)
        )
        write_json(out, cases)
        write_text(out.with_suffix('.md'), to_markdown(cases))
    print(to_markdown(cases))


if __name__ == '__main__':
    main()
