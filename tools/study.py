"""Train three seeds of detector and energy model, then compare the stages.

On BCCD the control is trained too: the plain detector, trained on for as long
as the energy model took. Ends with tools/compare_stages.py on val and test.
Trainings that are done are not repeated, interrupted ones are resumed.
On the digits there are other detectors than Faster R-CNN (--detector).
"""

import argparse
from pathlib import Path

from _experiment import ROOT, run_tool, train_once
from mmengine.config import Config

FASTER = 'faster-rcnn'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
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
    args = parser.parse_args()
    if not (ROOT / config_of(args.data, args.detector, 'nce-plus_')).exists():
        parser.error(
            f'no energy config of {args.detector} in configs/{args.data}'
        )
    return args


def config_of(data: str, detector: str, kind: str = '') -> str:
    """Config of the plain detector, the energy model or the control."""
    return f'configs/{data}/{detector}_r18-half_{kind}{data}.py'


def train_plain(args: argparse.Namespace, folder: Path, seed: int) -> Path:
    """The plain detector; its backbone may come from Faster R-CNN."""
    config, start = config_of(args.data, args.detector), None
    if Config.fromfile(ROOT / config).get('load_from'):
        start = train_once(
            config_of(args.data, FASTER), folder / 'backbone', seed
        )
    return train_once(config, folder / 'plain', seed, start)


def main() -> None:
    args = parse_args()
    name = args.data
    if args.detector != FASTER:
        name += f'-{args.detector}'
    work_dir = (args.work_dir or Path('work_dirs/study', name)).resolve()
    energy_config, control_config = (
        config_of(args.data, args.detector, kind)
        for kind in ('nce-plus_', 'control_')
    )
    energy, control = [], []
    for seed in args.seeds:
        folder = work_dir / f'seed{seed}'
        plain = train_plain(args, folder, seed)
        energy.append(
            train_once(energy_config, folder / 'nce-plus', seed, plain)
        )
        if (ROOT / control_config).exists():
            control.append(
                train_once(control_config, folder / 'control', seed, plain)
            )
    against = ['--control-config', control_config, '--control', *control]
    for split in ('val', 'test'):
        run_tool(
            'compare_stages',
            energy_config,
            *energy,
            '--split',
            split,
            '--out',
            work_dir / f'{split}.json',
            *(against if control else []),
        )


if __name__ == '__main__':
    main()
