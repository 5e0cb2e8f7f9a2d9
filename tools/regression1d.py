"""Train every method on the paper's 1D problems; D_KL in numbers and pictures.

  python tools/regression1d.py --method nce_plus --dataset 1 --out-dir DIR
  python tools/regression1d.py --method all --dataset all --out-dir DIR

Each cell (method and data set) has a folder in DIR, with its result (JSON),
its curves and its density. The table and the figure in DIR cover every cell
that lies there. Cells that are done are not repeated, interrupted ones are
resumed. A method is a config in configs/regression1d.
"""

import argparse
import json
from pathlib import Path

from _regression1d import (
    add_run_arguments,
    config_options,
    load_experiment,
    method_names,
    prepare,
    table,
)

from mmdet_ebm.regression1d import PROBLEMS, run_experiment
from mmdet_ebm.regression1d.experiment import DENSITIES, RESULT
from mmdet_ebm.regression1d.pictures import (
    draw_curve,
    draw_densities,
    draw_overview,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--method',
        nargs='+',
        default=['all'],
        choices=[*method_names(), 'all'],
    )
    parser.add_argument(
        '--dataset', default='all', choices=[*map(str, PROBLEMS), 'all']
    )
    add_run_arguments(parser)
    return parser.parse_args()


def collect(out_dir: Path, methods: list[str]) -> None:
    """Table and figure of all cells that lie in a folder."""
    cells = {}
    for method in methods:
        for dataset in PROBLEMS:
            folder = out_dir / f'{method}_dataset{dataset}'
            if (folder / RESULT).exists():
                result = json.loads((folder / RESULT).read_text())
                cells[method, dataset] = result, folder / DENSITIES
    results = {key: result for key, (result, _) in cells.items()}
    shown = [
        method
        for method in methods
        if any(method == found for found, _ in cells)
    ]
    text = table(results, shown)
    print(text)
    (out_dir / 'table.md').write_text(text + '\n')
    (out_dir / 'table.json').write_text(
        json.dumps(
            [
                dict(
                    method=method,
                    dataset=dataset,
                    **{
                        key: result[key]
                        for key in (
                            'best',
                            'all',
                            'kl',
                            'seconds_per_epoch',
                            'num_threads',
                            'experiment',
                            'versions',
                        )
                    },
                )
                for (method, dataset), result in results.items()
            ],
            indent=1,
        )
    )
    draw_overview(cells, shown, out_dir / 'densities.png')


def main() -> None:
    args = parse_args()
    methods = method_names() if 'all' in args.method else args.method
    datasets = PROBLEMS if args.dataset == 'all' else [int(args.dataset)]
    options = config_options(args)
    # All settings are checked before the first cell runs.
    experiments = {
        (method, dataset): load_experiment(method, dataset, options)
        for dataset in datasets
        for method in methods
    }
    prepare(args)
    for (method, dataset), experiment in experiments.items():
        folder = args.out_dir / f'{method}_dataset{dataset}'
        title = f'{method}, data set {dataset}'
        try:
            result = run_experiment(
                experiment,
                folder,
                args.device,
                args.threads,
                description=title,
            )
        except ValueError as error:
            raise SystemExit(str(error)) from error
        draw_curve(result, title, folder / 'curve.png')
        draw_densities(folder / DENSITIES, title, folder / 'densities.png')
    collect(args.out_dir, method_names())


if __name__ == '__main__':
    main()
