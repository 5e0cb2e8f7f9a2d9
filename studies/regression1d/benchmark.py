"""How much faster the ensemble trains than models one at a time.

Times training steps of NCE+ (batches of 32), step by step in turn so that all
contenders meet the same machine, and prints medians per model:

- one at a time: torch's modules and autograd, one thread;
- ensemble: all models, with one thread and with several.

All contenders run the same method of mmdet_ebm.core and Adam.

  OMP_NUM_THREADS=1 python -m studies.regression1d.benchmark
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import trange

from .networks import PlainNetwork
from .settings import METHODS, TrainingSettings, build_method
from .training import EnsembleTrainer, method_losses

WARM_UP_ROUNDS = 2


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.regression1d.benchmark',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--models', type=int, default=20)
    parser.add_argument('--samples', type=int, default=1024, help='M')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    return parser.parse_args(argv)


def plain_steps(
    method: nn.Module, settings: TrainingSettings
) -> Callable[[], None]:
    """A step of each model, one model after the other, as one would write it.

    They are steps of one network: its speed is that of any other.
    """
    network = PlainNetwork(settings.width)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    x = 6 * torch.rand(settings.batch_size) - 3
    targets = x.sin()[:, None]

    def steps() -> None:
        for _ in range(settings.num_models):
            losses = method_losses(method, network.logdensity_fn(x), targets)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()

    return steps


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    method = build_method({**METHODS['nce_plus'], 'num_samples': args.samples})
    # An epoch is a single batch.
    settings = TrainingSettings(num_models=args.models, num_points=32)
    contenders = {'one at a time, 1 thread': plain_steps(method, settings)}
    for threads in (1, args.threads):
        trainer = EnsembleTrainer(1, method, settings, num_threads=threads)
        contenders[f'ensemble, threads: {threads}'] = trainer.train_epoch
    seconds = {name: [] for name in contenders}
    for number in trange(args.rounds + WARM_UP_ROUNDS):
        for name, steps in contenders.items():
            start = time.perf_counter()
            steps()
            if number >= WARM_UP_ROUNDS:
                seconds[name].append(
                    (time.perf_counter() - start) / args.models
                )
    print(
        f'\nmilliseconds per model and step, median of {args.rounds} rounds; '
        f'{args.models} models, M = {args.samples}'
    )
    figures = {}
    reference = seconds['one at a time, 1 thread']
    for name, values in seconds.items():
        ratios = [other / own for own, other in zip(values, reference)]
        low, middle, high = statistics.quantiles(ratios)
        figures[name] = dict(
            milliseconds=1e3 * statistics.median(values),
            times_faster=middle,
            times_faster_quartiles=[low, high],
        )
        print(
            f'{name:25s} {figures[name]["milliseconds"]:7.2f} ms   '
            f'{middle:5.2f} times as fast (quartiles {low:.2f} to {high:.2f})'
        )
    if args.out:
        report = dict(
            figures=figures,
            models=args.models,
            samples=args.samples,
            rounds=args.rounds,
            torch=torch.__version__,
        )
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
