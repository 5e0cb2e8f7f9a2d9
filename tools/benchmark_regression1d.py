"""How much faster the ensemble trains than models one at a time.

Times training steps of NCE+ (M = 1024, batches of 32), step by step in turn so
that all contenders meet the same machine, and prints medians per model:

- plain: one model at a time, torch's modules and autograd, one thread;
- ensemble: all models together, with one thread and with several.

All contenders run the same loss of mmdet_ebm.core and Adam. Operations
(--profile) are timed in a run of their own.

  OMP_NUM_THREADS=1 python tools/benchmark_regression1d.py
"""

import argparse
import json
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import trange

from mmdet_ebm.regression1d import (
    EnsembleTrainer,
    PlainNetwork,
    TrainingSettings,
    build_method,
    fused,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--models', type=int, default=20)
    parser.add_argument('--samples', type=int, default=1024, help='M')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument(
        '--profile', action='store_true', help='say where the time goes'
    )
    parser.add_argument('--out', type=Path, help='JSON file to write')
    return parser.parse_args()


def plain_step(method, settings):
    """A step of one model, as one would write it."""
    network = PlainNetwork(settings.width)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    x = 6 * torch.rand(settings.batch_size) - 3
    targets = x.sin()[:, None]

    def step():
        loss = method(network.logdensity_fn(x), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ensemble_step(method, settings, **options):
    """A step of all models: an epoch of a single batch."""
    return EnsembleTrainer(1, method, settings, **options).train_epoch


@contextmanager
def replaced(name, value):
    """Another function in the module of the joint layers."""
    original = getattr(fused, name)
    setattr(fused, name, value)
    try:
        yield
    finally:
        setattr(fused, name, original)


def without_kernel(step):
    """The step as it is where no compiler is found."""

    def run():
        with replaced('joint_library', lambda width: None):
            step()

    return run


def show_profile(name, step, count):
    """Print the operations that take most of a step."""
    # The backward kernel is a node of the graph and shows as such.
    forward = record_function('joint_forward')(fused._forward)
    with (
        replaced('_forward', forward),
        profile(activities=[ProfilerActivity.CPU]) as recorded,
    ):
        for _ in range(count):
            step()
    print(f'\n{name}, {count} steps')
    print(
        recorded.key_averages()
        .table(
            sort_by='self_cpu_time_total',
            row_limit=12,
            max_name_column_width=32,
        )
        .split('\n\n')[0]
    )


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    method = build_method(
        dict(
            type='NCEPlus',
            sigmas=(0.1, 0.8),
            num_samples=args.samples,
            beta=0.025,
        )
    )
    settings = TrainingSettings(num_models=args.models, num_points=32)
    several = f'ensemble, {args.threads} threads'
    # name: (step, models that it trains)
    contenders = {
        'plain, 1 thread': (plain_step(method, settings), 1),
        'ensemble, 1 thread': (ensemble_step(method, settings), args.models),
        several: (
            ensemble_step(method, settings, num_threads=args.threads),
            args.models,
        ),
        'ensemble without kernel, 1 thread': (
            without_kernel(ensemble_step(method, settings, models_per_pass=1)),
            args.models,
        ),
    }
    seconds = {name: [] for name in contenders}
    for number in trange(args.rounds + 2):
        for name, (step, models) in contenders.items():
            # As long as an ensemble's step: the same share of every caller's
            # cold caches.
            repeats = args.models // models
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            if number >= 2:  # warm-up
                seconds[name].append(
                    (time.perf_counter() - start) / args.models
                )
    plain = seconds['plain, 1 thread']
    figures = {}
    print(
        f'\nseconds per model and step, median of {args.rounds} rounds; '
        f'{args.models} models, M = {args.samples}'
    )
    for name, values in seconds.items():
        ratios = [own / other for own, other in zip(plain, values)]
        figures[name] = dict(
            milliseconds=1e3 * statistics.median(values),
            times_faster=statistics.median(ratios),
            times_faster_quartiles=statistics.quantiles(ratios)[::2],
        )
        low, high = figures[name]['times_faster_quartiles']
        print(
            f'{name:35s} {1e3 * statistics.median(values):7.2f} ms   '
            f'{statistics.median(ratios):5.2f} times as fast '
            f'(quartiles {low:.2f} to {high:.2f})'
        )
    if args.profile:
        show_profile('plain', contenders['plain, 1 thread'][0], 20)
        show_profile(
            'ensemble, 1 thread', contenders['ensemble, 1 thread'][0], 2
        )
    if args.out:
        args.out.write_text(
            json.dumps(
                dict(
                    figures=figures,
                    models=args.models,
                    samples=args.samples,
                    rounds=args.rounds,
                    torch=torch.__version__,
                ),
                indent=1,
            )
        )


if __name__ == '__main__':
    main()
