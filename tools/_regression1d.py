"""What the tools of the 1D regression study share."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from _experiment import ROOT
from mmengine.config import Config, DictAction

from mmdet_ebm.regression1d import Experiment

CONFIGS = ROOT / 'configs' / 'regression1d'
# Order of the paper; methods added to the configs follow.
_ORDER = ['ml_is', 'kld_is', 'ml_mcmc', 'nce', 'nce_plus', 'sm', 'dsm']


def method_names() -> list[str]:
    """Methods that have a config."""
    names = sorted(
        {
            path.stem.rsplit('_', 1)[0].replace('-', '_')
            for path in CONFIGS.glob('*_dataset*.py')
        }
    )
    return sorted(
        names,
        key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER),
    )


def load_experiment(
    method: str, dataset: int, options: dict[str, Any] | None = None
) -> Experiment:
    """The experiment of a config file, with changes.

    Raises:
        SystemExit: If the settings do not fit together.
    """
    name = method.replace('_', '-')
    cfg = Config.fromfile(CONFIGS / f'{name}_dataset{dataset}.py')
    try:
        cfg.merge_from_dict(options or {})
        return Experiment.from_dict(cfg.to_dict())
    except (KeyError, ValueError) as error:
        raise SystemExit(f'{method}, data set {dataset}: {error}') from error


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say how and where to compute."""
    parser.add_argument(
        '--models',
        type=int,
        help='models of a cell (default: 20, as published)',
    )
    parser.add_argument('--seed', type=int, help='default: 0')
    parser.add_argument(
        '--out-dir',
        type=Path,
        required=True,
        help='results; what lies there is not repeated',
    )
    parser.add_argument('--device', default='cpu', help='e.g. cuda:0')
    parser.add_argument(
        '--threads',
        type=int,
        default=1,
        help='models that compute at the same time on a CPU; '
        'set OMP_NUM_THREADS=1 (default: 1)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override config entries, e.g. '
        'training.num_epochs=10 method.num_samples=256',
    )


def config_options(args: argparse.Namespace) -> dict[str, Any]:
    """Config entries that the arguments change."""
    options = dict(args.cfg_options)
    for key, value in (('num_models', args.models), ('seed', args.seed)):
        if value is not None:
            options[f'training.{key}'] = value
    return options


def prepare(args: argparse.Namespace) -> None:
    """Check device, threads and folder before anything long starts.

    Raises:
        SystemExit: If one of them cannot be used.
    """
    if args.threads < 1:
        raise SystemExit(f'--threads must be at least 1, got {args.threads}')
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(
            f'cannot compute on {args.device}: {error}'
        ) from error
    if args.device == 'cpu':
        # Models are what runs in parallel; threads inside an operation wait
        # for each other after each of them.
        torch.set_num_threads(1)
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.out_dir):
            pass
    except OSError as error:
        raise SystemExit(f'cannot write to {args.out_dir}: {error}') from error


def figure_text(summary: dict[str, float]) -> str:
    """Mean and standard deviation for a table."""
    return f'{summary["mean"]:.3f} ± {summary["std"]:.3f}'


def table(
    cells: dict[tuple[str, int], dict[str, Any]], methods: list[str]
) -> str:
    """Markdown: a row for each method, D_KL on each data set."""
    datasets = sorted({dataset for _, dataset in cells})
    header, rule = '| method |', '|---|'
    for dataset in datasets:
        header += (
            f' {dataset}: best | {dataset}: all | {dataset}: models |'
            f' {dataset}: s / epoch |'
        )
        rule += '---|' * 4
    lines = [header, rule]
    for method in methods:
        line = f'| {method} |'
        for dataset in datasets:
            if (method, dataset) not in cells:
                line += ' | | | |'
                continue
            result = cells[method, dataset]
            line += (
                f' {figure_text(result["best"])} |'
                f' {figure_text(result["all"])} |'
                f' {result["best"]["count"]} of {result["all"]["count"]}'
                f' | {result["seconds_per_epoch"]:.2f} |'
            )
        lines.append(line)
    return '\n'.join(lines)
