"""When does NCE+ beat NCE? Energy heads from ever noisier annotations.

The generated digits have exact boxes. Gaussian noise of several sizes is put
on the training boxes (in relative box space: shift over size, log size); heads
are trained on them with several beta (0 is NCE) and evaluated against the
exact boxes of the test split. The detector has seen exact boxes only, so that
nothing but the head's training differs. The step length of the ascent is
chosen on val for each level and beta, with the first seed.

Writes a table, a plot and the figures; a run that was interrupted continues.
"""

import argparse
import logging
import os
from pathlib import Path

import matplotlib
import numpy as np
import torch
from _experiment import run_tool, write_json
from _frozen import Heads, frozen_detector, parse_study_args, small_config
from tqdm import tqdm

from mmdet_ebm.evaluation.bootstrap import METRICS

matplotlib.use('Agg')
import matplotlib.pyplot as plt

STEP_LENGTHS = ((1e-4, 4e-4), (4e-4, 16e-4), (16e-4, 64e-4))
BATCH_SIZE = 4


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
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
    args = parse_study_args(parser)
    if min(args.noise) < 0 or min(args.beta) < 0:
        parser.error('--noise and --beta must not be negative')
    return args


def run(args: argparse.Namespace, work_dir: Path, out: Path) -> dict:
    figures = dict(
        noise=args.noise,
        beta=args.beta,
        seeds=[],
        steps=args.steps,
        samples=args.samples,
        torch=torch.__version__,
        plain=[],
        cells=[],
    )
    cells = {}
    for i, seed in enumerate(args.seeds):
        detector = frozen_detector(args, 'digits', i, work_dir)
        exact = detector.training_views(1, seed)
        heads = Heads(detector, seed, work_dir / f'seed{seed}')
        figures['seeds'].append(seed)
        figures['plain'].append(detector.evaluate_plain('test'))
        grid = [(noise, beta) for noise in args.noise for beta in args.beta]
        for noise, beta in tqdm(grid, desc=f'seed {seed}'):
            views = (
                exact
                if noise == 0
                else detector.with_boxes_of(
                    exact, f'annotations/train_noise-{noise:g}.json'
                )
            )
            cfg = small_config(
                'digits',
                'nce-plus',
                args.samples,
                {
                    'train_dataloader.batch_size': BATCH_SIZE,
                    'model.roi_head.refiner.loss.beta': beta,
                },
            )
            head = heads.train(f'noise-{noise:g}', cfg, views, args.steps)
            if (noise, beta) not in cells:
                step_length = max(
                    STEP_LENGTHS,
                    key=lambda step: head.evaluate('val', step)['AP'],
                )
                cells[noise, beta] = dict(
                    noise=noise, beta=beta, step_length=step_length, runs=[]
                )
            cell = cells[noise, beta]
            cell['runs'].append(head.evaluate('test', cell['step_length']))
            figures['cells'] = list(cells.values())
            write(figures, out)
    return figures


def markdown(figures: dict) -> str:
    """Mean AP over the seeds (lowest to highest), in per cent."""
    text = []
    for metric in METRICS:
        text += [
            '',
            f'| {metric}, noise | '
            + ' | '.join(f'beta {beta:g}' for beta in figures['beta'])
            + ' |',
            '|---' * (1 + len(figures['beta'])) + '|',
        ]
        for noise in figures['noise']:
            row = [f'{noise:g}']
            for cell in figures['cells']:
                if cell['noise'] == noise:
                    values = [100 * run[metric] for run in cell['runs']]
                    row.append(
                        f'{np.mean(values):.1f} ({min(values):.1f} to '
                        f'{max(values):.1f})'
                    )
            text.append(f'| {" | ".join(row)} |')
    plain = [100 * run['AP'] for run in figures['plain']]
    return '\n'.join(text) + (
        f'\n\nPlain detector: AP {np.mean(plain):.1f} '
        f'({min(plain):.1f} to {max(plain):.1f}).\n'
    )


def plot(figures: dict, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
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
    plt.close(figure)


def write(figures: dict, out: Path) -> None:
    write_json(out, figures)
    out.with_suffix('.md').write_text(markdown(figures))
    plot(figures, out.with_suffix('.png'))


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # a line for every layer of every head
    work_dir = args.work_dir.resolve()
    levels = [noise for noise in args.noise if noise > 0]
    data = args.data
    if data is None:
        # Its images and exact boxes are those of the default set.
        data = work_dir / 'data'
        run_tool('make_digits', data, '--annotation-noise', *levels)
    os.environ['DIGITS_ROOT'] = str(data)
    out = args.out or work_dir / 'label_noise.json'
    run(args, work_dir, out)
    print(out.with_suffix('.md').read_text())


if __name__ == '__main__':
    main()
