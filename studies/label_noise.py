"""When does NCE+ beat NCE? Energy models from ever noisier annotations.

The generated digits have exact boxes. Gaussian noise of several sizes is put
on the training boxes (in relative box space: shift over size, log size).
Energy models train on them with several beta (0 is NCE) and are evaluated
against the exact boxes of the test split. The detector has seen exact boxes
only, so that nothing else differs. The step length of the ascent is chosen on
val for each level and beta, with the first seed.

Writes a table, a plot and the figures; a run that was interrupted continues.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from mmdet_ebm.evaluation.bootstrap import METRICS

from .energy_models import EnergyModels, TrainedModel, small_config
from .files import mean_and_range, run_tool, table, write_with_table
from .frozen import FrozenDetector, frozen_detector, parse_study_args

STEP_LENGTHS = ((1e-4, 4e-4), (4e-4, 16e-4), (16e-4, 64e-4))
BATCH_SIZE = 4


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.label_noise',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/label_noise'),
        help='default: work_dirs/label_noise',
    )
    parser.add_argument(
        '--data',
        type=Path,
        help='digits with noisy copies of the training boxes '
        '(default: make them in WORK_DIR/data)',
    )
    parser.add_argument(
        '--noise',
        type=float,
        nargs='+',
        default=[0.0, 0.05, 0.1, 0.2],
        help='standard deviations (default: 0 .05 .1 .2)',
    )
    parser.add_argument(
        '--beta',
        type=float,
        nargs='+',
        default=[0.0, 0.1, 0.25, 0.5, 1.0],
        help='default: 0 .1 .25 .5 1',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='JSON file of the figures; table and plot go '
        'beside it (default: WORK_DIR/label_noise.json)',
    )
    args = parse_study_args(parser, arguments)
    if min(args.noise) < 0 or min(args.beta) < 0:
        parser.error('--noise and --beta must not be negative')
    return args


class Study:
    """The figures as they come in.

    Args:
        args: Of the command line.
        work_dir: Folder of everything that is trained.
        out: JSON file of the figures.
    """

    def __init__(
        self, args: argparse.Namespace, work_dir: Path, out: Path
    ) -> None:
        self._args, self._work_dir, self._out = args, work_dir, out
        self._cells: dict[tuple[float, float], dict] = {}
        self.figures: dict = dict(
            noise=args.noise,
            beta=args.beta,
            seeds=[],
            steps=args.steps,
            samples=args.samples,
            torch=torch.__version__,
            plain=[],
            cells=[],
        )

    def run(self) -> None:
        """All seeds, one after the other."""
        args = self._args
        for index, seed in enumerate(args.seeds):
            detector = frozen_detector(args, 'digits', index, self._work_dir)
            self.figures['seeds'].append(seed)
            self.figures['plain'].append(detector.evaluate('test'))
            self._fill_cells(detector, seed)

    def _fill_cells(self, detector: FrozenDetector, seed: int) -> None:
        args = self._args
        exact = detector.training_views(1, seed)
        models = EnergyModels(detector, seed, self._work_dir / f'seed{seed}')
        grid = [(noise, beta) for noise in args.noise for beta in args.beta]
        for noise, beta in tqdm(grid, desc=f'seed {seed}'):
            views = exact
            if noise > 0:
                views = detector.with_boxes_of(
                    exact, f'annotations/train_noise-{noise:g}.json'
                )
            changes = {
                'train_dataloader.batch_size': BATCH_SIZE,
                'model.energy_model.loss.beta': beta,
            }
            cfg = small_config('digits', 'nce-plus', args.samples, changes)
            model = models.trained(f'noise-{noise:g}', cfg, views, args.steps)
            self._add(noise, beta, model)

    def _add(self, noise: float, beta: float, model: TrainedModel) -> None:
        if (noise, beta) not in self._cells:
            step_length = max(
                STEP_LENGTHS,
                key=lambda step: model.evaluate('val', step)['AP'],
            )
            self._cells[noise, beta] = dict(
                noise=noise, beta=beta, step_length=step_length, runs=[]
            )
        cell = self._cells[noise, beta]
        cell['runs'].append(model.evaluate('test', cell['step_length']))
        self.figures['cells'] = list(self._cells.values())
        write_with_table(self.figures, self._out, to_markdown)
        plot(self.figures, self._out.with_suffix('.png'))


def to_markdown(figures: dict) -> str:
    """Mean AP over the seeds (lowest to highest), in per cent."""
    text = []
    for metric in METRICS:
        rows = [
            [f'{noise:g}']
            + [
                mean_and_range([run[metric] for run in cell['runs']])
                for cell in figures['cells']
                if cell['noise'] == noise
            ]
            for noise in figures['noise']
        ]
        headers = [f'beta {beta:g}' for beta in figures['beta']]
        text += ['', table(rows, [f'{metric}, noise', *headers])]
    plain = mean_and_range([run['AP'] for run in figures['plain']])
    return '\n'.join(text) + f'\n\nPlain detector: AP {plain}.\n'


def plot(figures: dict, path: Path) -> None:
    """AP over the noise, a line for each beta."""
    figure = Figure(figsize=(9, 3.6))
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ('AP', 'AP75')):
        for beta in figures['beta']:
            cells = [c for c in figures['cells'] if c['beta'] == beta]
            values = [[100 * run[metric] for run in c['runs']] for c in cells]
            means = np.array([np.mean(v) for v in values])
            spread = [
                means - [min(v) for v in values],
                [max(v) for v in values] - means,
            ]
            axis.errorbar(
                [c['noise'] for c in cells],
                means,
                spread,
                marker='o',
                capsize=3,
                label='NCE' if beta == 0 else f'NCE+, beta {beta:g}',
            )
        axis.axhline(
            100 * np.mean([run[metric] for run in figures['plain']]),
            color='grey',
            linestyle=':',
            label='plain detector',
        )
        axis.set_xlabel('noise on the training boxes (relative box space)')
        axis.set_ylabel(f'{metric} against exact boxes')
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    logging.disable(logging.WARNING)  # a line for every layer of every head
    work_dir = args.work_dir.resolve()
    levels = [noise for noise in args.noise if noise > 0]
    data = args.data
    if data is None:
        # Its images and exact boxes are those of the default set.
        data = work_dir / 'data'
        run_tool('make_digits', data, '--annotation-noise', *levels)
    os.environ['DIGITS_ROOT'] = str(data)
    study = Study(args, work_dir, args.out or work_dir / 'label_noise.json')
    study.run()
    print(to_markdown(study.figures))


if __name__ == '__main__':
    main()
