"""Ratios of things that run in turn, so that all meet the same machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm


def time_in_turn(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 1,
    description: str = '',
) -> dict[str, list[float]]:
    """Seconds of each contender in each round.

    Args:
        contenders: What to call, by name; each once a round, in order.
        rounds: Rounds that count.
        warm_up: Rounds before them.
        description: Text of the progress bar.
    """
    seconds = {name: [] for name in contenders}
    for number in tqdm(range(rounds + warm_up), desc=description):
        for name, call in contenders.items():
            _synchronise()
            start = time.perf_counter()
            call()
            _synchronise()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, Any]:
    """Median and quartiles of the ratio, round by round."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, middle, high = (
        ratios * 3
        if len(ratios) == 1
        else statistics.quantiles(ratios, method='inclusive')
    )
    return dict(ratio=middle, quartiles=[low, high])


def milliseconds(seconds: list[float]) -> float:
    """Median."""
    return 1e3 * statistics.median(seconds)


def peak_memory(
    call: Callable[[], Any], device: torch.device = torch.device('cpu')
) -> float:
    """MiB that a call allocates beyond what was there, at its peak."""
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    allocated = peak = 0
    events = (
        e
        for e in profile.profiler.kineto_results.events()
        if e.name() == '[memory]'
    )
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak / 2**20


def environment(device: torch.device) -> dict[str, Any]:
    """What figures depend on besides the code."""
    return dict(
        torch=torch.__version__,
        python=platform.python_version(),
        threads=torch.get_num_threads(),
        # Whether torch's memory comes in large pages, on a CPU.
        large_pages=os.environ.get('THP_MEM_ALLOC_ENABLE', '0'),
        device=(
            torch.cuda.get_device_name(device)
            if device.type == 'cuda'
            else _processor()
        ),
    )


def _processor() -> str:
    try:
        with open('/proc/cpuinfo') as lines:
            names = {
                line.split(':')[1].strip()
                for line in lines
                if line.startswith('model name')
            }
        return ', '.join(sorted(names))
    except OSError:
        return platform.processor() or platform.machine()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Report:
    """Rows of one section: printed as they come, collected for the JSON."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def compare(
        self,
        what: str,
        seconds: dict[str, list[float]],
        ours: str,
        other: str,
        **more: Any,
    ) -> None:
        """Time of one contender relative to another's."""
        row = dict(
            what=what,
            ours=ours,
            milliseconds=milliseconds(seconds[ours]),
            other=other,
            other_milliseconds=milliseconds(seconds[other]),
            **ratio(seconds[ours], seconds[other]),
            **more,
        )
        low, high = row['quartiles']
        extra = ''.join(f'  {key} {value:.4g}' for key, value in more.items())
        print(
            f'{what}: {row["milliseconds"]:.1f} ms, {other} '
            f'{row["other_milliseconds"]:.1f} ms: {row["ratio"]:.3f} '
            f'({low:.3f} to {high:.3f}), 1 / {1 / row["ratio"]:.2f}{extra}',
            flush=True,
        )
        self.rows.append(row)

    def add(self, what: str, **values: float) -> None:
        """Figures that are no ratio of times."""
        print(
            f'{what}: '
            + ', '.join(
                f'{name} {value:.4g}' for name, value in values.items()
            ),
            flush=True,
        )
        self.rows.append(dict(what=what, **values))
