"""What the commands of the study share."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .experiment import run_experiment
from .settings import Experiment, load_experiment, parse_options

# What lists of results keep of each; histories are in the cells' folders.
_LISTED = (
    'best',
    'all',
    'kl',
    'seconds_per_epoch',
    'num_threads',
    'experiment',
    'versions',
)


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
        metavar='KEY=VALUE',
        default=[],
        help='change settings, e.g. '
        'training.num_epochs=10 method.num_samples=256',
    )


def load(
    args: argparse.Namespace,
    method: str,
    dataset: int,
    changes: dict[str, Any] | None = None,
) -> Experiment:
    """A published experiment with the changes of the arguments, then others.

    Raises:
        SystemExit: If the settings do not fit together.
    """
    try:
        options = parse_options(args.cfg_options)
        for key, value in (('num_models', args.models), ('seed', args.seed)):
            if value is not None:
                options[f'training.{key}'] = value
        return load_experiment(method, dataset, {**options, **(changes or {})})
    except ValueError as error:
        raise SystemExit(f'{method}, data set {dataset}: {error}') from error


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


def run(
    args: argparse.Namespace, experiment: Experiment, folder: Path, title: str
) -> dict[str, Any]:
    """The result of a cell, see :func:`run_experiment`.

    Raises:
        SystemExit: If the folder holds another experiment.
    """
    try:
        return run_experiment(
            experiment, folder, args.device, args.threads, description=title
        )
    except ValueError as error:
        raise SystemExit(str(error)) from error


def figure_text(summary: dict[str, float]) -> str:
    """Mean and standard deviation for a table."""
    return f'{summary["mean"]:.3f} ± {summary["std"]:.3f}'


def write_list(
    path: Path,
    labels: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
) -> None:
    """Write labels and figures of results to a JSON file."""
    rows = [
        {**label, **{key: result[key] for key in _LISTED}}
        for label, result in zip(labels, results)
    ]
    path.write_text(json.dumps(rows, indent=1))
