"""Train three seeds of detector and energy model, then compare the stages.

Where there is a config of the control, it is trained too: the plain detector,
trained on for as long as the energy model took. Ends with
studies.compare_stages on val and test.
Trainings that are done are not repeated, interrupted ones are resumed.
On the digits there are other detectors than Faster R-CNN (--detector).
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mmdet_ebm.files import write_json

from . import compare_stages
from .files import small_config_file, train_once

FASTER = 'faster-rcnn'


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.train_and_compare',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('data', choices=['digits', 'bccd'])
    parser.add_argument(
        '--detector',
        default=FASTER,
        help='as in configs/digits/DETECTOR_r18-half_*, for '
        'example atss or dino (default: faster-rcnn)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='default: work_dirs/study/DATA, with -DETECTOR '
        'for others than faster-rcnn',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    args = parser.parse_args(arguments)
    if not small_config_file(args.data, 'nce-plus', args.detector).exists():
        parser.error(
            f'no energy config of {args.detector} in configs/{args.data}'
        )
    return args


def train_plain(args: argparse.Namespace, folder: Path, seed: int) -> Path:
    """The plain detector; its backbone may come from Faster R-CNN."""
    config, start = small_config_file(args.data, '', args.detector), None
    if Config.fromfile(config).get('load_from'):
        start = train_once(
            small_config_file(args.data), folder / 'backbone', seed
        )
    return train_once(config, folder / 'plain', seed, start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    name = args.data
    if args.detector != FASTER:
        name += f'-{args.detector}'
    work_dir = (args.work_dir or Path('work_dirs/study', name)).resolve()
    energy_config, control_config = (
        small_config_file(args.data, kind, args.detector)
        for kind in ('nce-plus', 'control')
    )
    energy, control = [], []
    for seed in args.seeds:
        folder = work_dir / f'seed{seed}'
        plain = train_plain(args, folder, seed)
        energy.append(
            train_once(energy_config, folder / 'nce-plus', seed, plain)
        )
        if control_config.exists():
            control.append(
                train_once(control_config, folder / 'control', seed, plain)
            )
    against = ['--control-config', control_config, '--control', *control]
    for split in ('val', 'test'):
        options = ['--split', split, '--out', work_dir / f'{split}.json']
        words = [energy_config, *energy, *options]
        compare_stages.main(
            [str(word) for word in words + (against if control else [])]
        )
        out = work_dir / f'{split}.json'
        figures = json.loads(out.read_text())
        minutes = [training_minutes(each.parent) for each in energy]
        write_json(out, dict(figures, training_minutes=minutes))


def training_minutes(work_dir: Path) -> float:
    """What the steps of a training took, by its logs; validation not."""
    steps = [
        entry
        for log in work_dir.glob('*/vis_data/scalars.json')
        for entry in map(json.loads, log.read_text().splitlines())
        if 'loss' in entry
    ]
    mean = statistics.mean(entry['time'] for entry in steps)
    return mean * max(entry['step'] for entry in steps) / 60


if __name__ == '__main__':
    main()
