"""What a setting does to D_KL on the 1D problems.

  python tools/ablate_regression1d.py samples --out-dir DIR
      D_KL against M, samples of each instance
  python tools/ablate_regression1d.py mcmc-steps --out-dir DIR
      ML-MCMC against L, steps of each chain
  python tools/ablate_regression1d.py label-noise --out-dir DIR
      Gaussian noise on the training targets, D_KL to the clean truth: NCE
      (beta 0) and NCE+ over beta

Cells that are done are not repeated, interrupted ones are resumed. Writes a
table (Markdown), a list (JSON) and a picture.
"""

import argparse
import json
from dataclasses import dataclass, field
from typing import Any

from _regression1d import (
    add_run_arguments,
    config_options,
    figure_text,
    load_experiment,
    prepare,
)

from mmdet_ebm.regression1d import PROBLEMS, run_experiment
from mmdet_ebm.regression1d.pictures import draw_ablation

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
        method: Name of the config.
        dataset: 1 or 2.
        options: Changes of the config.
    """

    name: str
    line: str
    setting: float
    method: str
    dataset: int
    options: dict[str, Any] = field(default_factory=dict)


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
    return [
        Cell(
            f'dataset{dataset}_L{steps}',
            f'ml_mcmc, data set {dataset}',
            steps,
            'ml_mcmc',
            dataset,
            {
                'method.num_steps': steps,
                **(
                    {'training.num_models': args.long_chain_models}
                    if steps > LONG_CHAIN
                    else {}
                ),
            },
        )
        for dataset in args.datasets
        for steps in (args.steps or MCMC_STEPS)
    ]


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


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
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
                    'ml_is',
                    'kld_is',
                    'ml_mcmc',
                    'nce',
                    'nce_plus',
                    'dsm',
                ],
            )
        if name == 'mcmc-steps':
            command.add_argument(
                '--steps', type=int, nargs='+', help=f'default: {MCMC_STEPS}'
            )
            command.add_argument(
                '--long-chain-models',
                type=int,
                default=4,
                help=f'models where L > {LONG_CHAIN} (default: 4)',
            )
    return parser.parse_args()


def table(cells: list[Cell], results: list[dict[str, Any]]) -> str:
    """Markdown: a row for each line, a column for each setting."""
    settings = sorted({cell.setting for cell in cells})
    by_place = {
        (cell.line, cell.setting): result
        for cell, result in zip(cells, results)
    }
    lines = [
        '| | ' + ' | '.join(f'{setting:g}' for setting in settings) + ' |',
        '|---|' + '---|' * len(settings),
    ]
    for line in dict.fromkeys(cell.line for cell in cells):
        row = [by_place[line, setting] for setting in settings]
        lines.append(
            f'| {line} | '
            + ' | '.join(
                f'{figure_text(result["all"])} '
                f'({result["seconds_per_epoch"]:.2f} s)'
                for result in row
            )
            + ' |'
        )
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    make_cells, setting, log_x = ABLATIONS[args.ablation]
    cells = make_cells(args)
    experiments = [
        load_experiment(
            cell.method, cell.dataset, {**config_options(args), **cell.options}
        )
        for cell in cells
    ]
    prepare(args)
    folder = args.out_dir / args.ablation
    results = []
    for cell, experiment in zip(cells, experiments):
        try:
            results.append(
                run_experiment(
                    experiment,
                    folder / cell.name,
                    args.device,
                    args.threads,
                    description=cell.name,
                )
            )
        except ValueError as error:
            raise SystemExit(str(error)) from error
    lines: dict[str, list] = {}
    for cell, result in zip(cells, results):
        error = result['all']['std'] / result['all']['count'] ** 0.5
        lines.setdefault(cell.line, []).append(
            (cell.setting, result['all']['mean'], error)
        )
    text = (
        f'D_KL, mean and standard deviation over models (seconds per '
        f'epoch), against {setting}\n\n{table(cells, results)}'
    )
    print(text)
    (folder / 'table.md').write_text(text + '\n')
    (folder / 'results.json').write_text(
        json.dumps(
            [
                dict(
                    line=cell.line,
                    setting=cell.setting,
                    method=cell.method,
                    dataset=cell.dataset,
                    **{
                        key: result[key]
                        for key in (
                            'all',
                            'best',
                            'kl',
                            'seconds_per_epoch',
                            'num_threads',
                            'experiment',
                            'versions',
                        )
                    },
                )
                for cell, result in zip(cells, results)
            ],
            indent=1,
        )
    )
    draw_ablation(lines, setting, folder / 'kl.png', log_x)


if __name__ == '__main__':
    main()
