"""Train three seeds of detector and energy model, then compare the stages.

On BCCD the control is trained too: the plain detector, trained on for as long
as the energy model took. Ends with tools/compare_stages.py on val and test.
Trainings that are done are not repeated, interrupted ones are resumed.
"""

import argparse
from pathlib import Path

from _experiment import ROOT, run_tool, train_once


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', choices=['digits', 'bccd'])
    parser.add_argument('--work-dir', type=Path,
                        help='default: work_dirs/study/DATA')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    work_dir = (args.work_dir or Path('work_dirs/study', args.data)).resolve()
    plain_config, energy_config, control_config = (
        f'configs/{args.data}/faster-rcnn_r18-half_{kind}{args.data}.py'
        for kind in ('', 'nce-plus_', 'control_'))
    energy, control = [], []
    for seed in args.seeds:
        folder = work_dir / f'seed{seed}'
        plain = train_once(plain_config, folder / 'plain', seed)
        energy.append(
            train_once(energy_config, folder / 'nce-plus', seed, plain))
        if (ROOT / control_config).exists():
            control.append(
                train_once(control_config, folder / 'control', seed, plain))
    against = ['--control-config', control_config, '--control', *control]
    for split in ('val', 'test'):
        run_tool('compare_stages', energy_config, *energy, '--split', split,
                 '--out', work_dir / f'{split}.json',
                 *(against if control else []))


if __name__ == '__main__':
    main()
