"""Train every method on the paper's 1D problems; D_KL in numbers and pictures.

  python -m studies.regression1d --method nce_plus --dataset 1 --out-dir DIR
  python -m studies.regression1d --method all --dataset all --out-dir DIR

Each cell (method and data set) has a folder in DIR, with its result (JSON),
its curves and its density. The table and the figure in DIR cover every cell
that lies there. Cells that are done are not repeated, interrupted ones are
resumed. The published settings are in settings.py.

What settings do: python -m studies.regression1d.ablations --help
Speed:            python -m studies.regression1d.benchmark --help
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
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
from .experiment import DENSITIES, RESULT
from .pictures import draw_curve, draw_densities, draw_overview
from .settings import METHODS

# (method, data set) -> result
Results = dict[tuple[str, int], dict[str, Any]]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.regression1d',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--method', nargs='+', default=['all'], choices=[*METHODS, 'all']
    )
    parser.add_argument(
        '--dataset', default='all', choices=[*map(str, PROBLEMS), 'all']
    )
    add_run_arguments(parser)
    return parser.parse_args(argv)


def table(results: Results) -> str:
    """Markdown: a row for each method, D_KL on each data set."""
    datasets = sorted({dataset for _, dataset in results})
    columns = ('best', 'all', 'models', 's / epoch')
    headers = [
        f'{dataset}: {name}' for dataset in datasets for name in columns
    ]
    rows = []
    for method in dict.fromkeys(method for method, _ in results):
        row = [method]
        for dataset in datasets:
            result = results.get((method, dataset))
            row += (
                [''] * len(columns)
                if result is None
                else [
                    figure_text(result['best']),
                    figure_text(result['all']),
                    f'{result["best"]["count"]} of {result["all"]["count"]}',
                    f'{result["seconds_per_epoch"]:.2f}',
                ]
            )
        rows.append(row)
    return tabulate(
        rows, ['method', *headers], tablefmt='github', disable_numparse=True
    )


def collect(out_dir: Path) -> None:
    """Table, list and figure of all cells that lie in a folder."""
    folders = {
        (method, dataset): out_dir / f'{method}_dataset{dataset}'
        for method in METHODS
        for dataset in PROBLEMS
    }
    results = {
        key: json.loads((folder / RESULT).read_text())
        for key, folder in folders.items()
        if (folder / RESULT).exists()
    }
    text = table(results)
    print(text)
    (out_dir / 'table.md').write_text(text + '\n')
    labels = [
        dict(method=method, dataset=number) for method, number in results
    ]
    write_list(out_dir / 'table.json', labels, list(results.values()))
    draw_overview(
        {
            key: (result, folders[key] / DENSITIES)
            for key, result in results.items()
        },
        list(dict.fromkeys(method for method, _ in results)),
        out_dir / 'densities.png',
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    methods = METHODS if 'all' in args.method else args.method
    datasets = PROBLEMS if args.dataset == 'all' else [int(args.dataset)]
    # All settings are checked before the first cell runs.
    experiments = {
        (method, dataset): load(args, method, dataset)
        for dataset in datasets
        for method in methods
    }
    prepare(args)
    for (method, dataset), experiment in experiments.items():
        folder = args.out_dir / f'{method}_dataset{dataset}'
        title = f'{method}, data set {dataset}'
        result = run(args, experiment, folder, title)
        draw_curve(result, title, folder / 'curve.png')
        draw_densities(folder / DENSITIES, title, folder / 'densities.png')
    collect(args.out_dir)


if __name__ == '__main__':
    main()
