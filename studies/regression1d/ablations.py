"""What a setting does to D_KL on the 1D problems.

  python -m studies.regression1d.ablations samples --out-dir DIR
      D_KL against M, samples of each instance
  python -m studies.regression1d.ablations mcmc-steps --out-dir DIR
      ML-MCMC against L, steps of each chain
  python -m studies.regression1d.ablations label-noise --out-dir DIR
      Gaussian noise on the training targets, D_KL to the clean truth: NCE
      (beta 0) and NCE+ over beta

Cells that are done are not repeated, interrupted ones are resumed. Writes a
table (Markdown), a list (JSON) and a picture.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from .command_line import (
    add_run_arguments,
    figure_text,
    load,
    prepare,
    run,
    write_list,
)
from .data import PROBLEMS
from .pictures import draw_ablation
from .settings import METHODS

NUM_SAMPLES = (16, 64, 256, 1024)
MCMC_STEPS = (1, 16, 256)
# Chains of more steps than this run on fewer models.
LONG_CHAIN = 16
LABEL_NOISE = (0.0, 0.05, 0.1, 0.2)
# 0 is NCE; 0.025 is published.
BETAS = (0.0, 0.025, 0.1, 0.4)


@dataclass
class Cell:
    """One training.

    Attributes:
        name: Folder, after that of the ablation.
        line: Name of the line that it is a point of.
        setting: Its place on that line.
        method: Name in the table of settings.
        dataset: 1 or 2.
        changes: Of the published settings.
    """

    name: str
    line: str
    setting: float
    method: str
    dataset: int
    changes: dict[str, Any]


def samples_cells(args: argparse.Namespace) -> list[Cell]:
    return [
        Cell(
            f'{method}_dataset{dataset}_M{number}',
            f'{method}, data set {dataset}',
            number,
            method,
            dataset,
            {'method.num_samples': number},
        )
        for dataset in args.datasets
        for method in args.methods
        for number in NUM_SAMPLES
    ]


def mcmc_cells(args: argparse.Namespace) -> list[Cell]:
    cells = []
    for dataset in args.datasets:
        for steps in args.steps:
            changes = {'method.num_steps': steps}
            if steps > LONG_CHAIN:
                changes['training.num_models'] = args.long_chain_models
            cells.append(
                Cell(
                    f'dataset{dataset}_L{steps}',
                    f'ml_mcmc, data set {dataset}',
                    steps,
                    'ml_mcmc',
                    dataset,
                    changes,
                )
            )
    return cells


def noise_cells(args: argparse.Namespace) -> list[Cell]:
    return [
        Cell(
            f'dataset{dataset}_noise{noise}_beta{beta}',
            f'data set {dataset}, '
            + (f'NCE+, beta {beta}' if beta else 'NCE'),
            noise,
            'nce_plus',
            dataset,
            {'method.beta': beta, 'training.label_noise': noise},
        )
        for dataset in args.datasets
        for beta in BETAS
        for noise in LABEL_NOISE
    ]


# name: (cells, what the setting is, logarithmic axis)
ABLATIONS = {
    'samples': (samples_cells, 'M, samples per instance', True),
    'mcmc-steps': (mcmc_cells, 'L, Langevin steps', True),
    'label-noise': (
        noise_cells,
        'standard deviation of the label noise',
        False,
    ),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.regression1d.ablations',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='ablation', required=True)
    for name, (_, setting, _) in ABLATIONS.items():
        command = commands.add_parser(name, help=f'over {setting}')
        add_run_arguments(command)
        command.add_argument(
            '--datasets',
            type=int,
            nargs='+',
            choices=list(PROBLEMS),
            default=list(PROBLEMS),
        )
        if name == 'samples':
            command.add_argument(
                '--methods',
                nargs='+',
                default=['ml_is', 'nce', 'nce_plus'],
                choices=[
                    method
                    for method, settings in METHODS.items()
                    if 'num_samples' in settings
                ],
            )
        if name == 'mcmc-steps':
            command.add_argument(
                '--steps',
                type=int,
                nargs='+',
                default=MCMC_STEPS,
                help=f'default: {MCMC_STEPS}',
            )
            command.add_argument(
                '--long-chain-models',
                type=int,
                default=4,
                help=f'models where L > {LONG_CHAIN} (default: 4)',
            )
    return parser.parse_args(argv)


def table(cells: list[Cell], results: list[dict[str, Any]]) -> str:
    """Markdown: a row for each line, a column for each setting."""
    settings = sorted({cell.setting for cell in cells})
    lines: dict[str, dict[float, str]] = {}
    for cell, result in zip(cells, results):
        lines.setdefault(cell.line, {})[cell.setting] = (
            f'{figure_text(result["all"])} '
            f'({result["seconds_per_epoch"]:.2f} s)'
        )
    return tabulate(
        [[line, *map(texts.get, settings)] for line, texts in lines.items()],
        ['', *(f'{setting:g}' for setting in settings)],
        tablefmt='github',
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    make_cells, setting, log_x = ABLATIONS[args.ablation]
    cells = make_cells(args)
    # All settings are checked before the first cell runs.
    experiments = [
        load(args, cell.method, cell.dataset, cell.changes) for cell in cells
    ]
    prepare(args)
    folder = args.out_dir / args.ablation
    results = [
        run(args, experiment, folder / cell.name, cell.name)
        for cell, experiment in zip(cells, experiments)
    ]
    text = (
        f'D_KL, mean and standard deviation over models (seconds per '
        f'epoch), against {setting}\n\n{table(cells, results)}'
    )
    print(text)
    (folder / 'table.md').write_text(text + '\n')
    labels = [
        dict(
            line=cell.line,
            setting=cell.setting,
            method=cell.method,
            dataset=cell.dataset,
        )
        for cell in cells
    ]
    write_list(folder / 'results.json', labels, results)
    lines: dict[str, list] = {}
    for cell, result in zip(cells, results):
        error = result['all']['std'] / result['all']['count'] ** 0.5
        lines.setdefault(cell.line, []).append(
            (cell.setting, result['all']['mean'], error)
        )
    draw_ablation(lines, setting, folder / 'kl.png', log_x)


if __name__ == '__main__':
    main()
