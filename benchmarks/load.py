"""Long runs: is the memory flat, and does a restart lose nothing?

  python -m benchmarks.load

Thousands of images of mixed kinds and sizes, some of them damaged, go through
tools/infer.py, which is killed half-way and started again. Then tools/train.py
trains for 2,000 steps. The memory of the processes is looked at all the time:
the table has it after a tenth, a half and all of the work. Linux only.

The detector is small and has random weights, so that it takes minutes: what a
larger one needs comes on top, and does not grow either.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from tabulate import tabulate

from .faults import Bench, require, require_success

# Images that differ; the others are copies under other names.
_DISTINCT = 400
# One in so many is damaged.
_DAMAGED = 50


def write_photos(folder: Path, number: int, seed: int = 0) -> int:
    """Write images of mixed kinds; gives how many of them are damaged."""
    rng = np.random.default_rng(seed)
    contents = [_content(rng, i) for i in range(min(number, _DISTINCT))]
    damaged = 0
    for i in range(number):
        suffix, data, whole = contents[i % len(contents)]
        path = folder / f'{i // 500:03d}' / f'{i:06d}{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        damaged += not whole
    return damaged


def _content(rng: np.random.Generator, i: int) -> tuple[str, bytes, bool]:
    """A file's suffix and content, and whether it can be read."""
    suffix = ('.jpg', '.png', '.webp', '.bmp', '.tif')[i % 5]
    channels = (3, 1, 4)[i % 3] if suffix == '.png' else 3
    width, height = np.exp(rng.uniform(np.log(24), np.log(1600), 2)).astype(
        int
    )
    if suffix == '.bmp':  # is not compressed
        width, height = min(width, 400), min(height, 400)
    image = cv2.resize(
        rng.integers(0, 255, (6, 8, channels), np.uint8),
        (int(width), int(height)),
        interpolation=cv2.INTER_CUBIC,
    )
    if suffix == '.png' and i % 7 == 0:
        image = image.astype(np.uint16) << 8
    data = cv2.imencode(suffix, image)[1].tobytes()
    if i % _DAMAGED == _DAMAGED - 1:
        cuts = (b'', b'no image', data[: len(data) // 2])
        return '.jpg', cuts[i // _DAMAGED % 3], False
    return suffix, data, True


def memory(pid: int) -> float:
    """MiB in memory of a process and those that it started."""
    total = 0.0
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        try:
            status = Path(f'/proc/{pid}/status').read_text()
            children = Path(f'/proc/{pid}/task/{pid}/children').read_text()
        except OSError:  # it has ended
            continue
        for line in status.splitlines():
            if line.startswith('VmRSS:'):
                total += int(line.split()[1]) / 1024
        waiting += map(int, children.split())
    return total


class Watched:
    """A process, its memory by the work that is done.

    Args:
        command: What to run.
        environment: Its environment.
        done: How much of the work is done, between 0 and 1.
        kill_at: Where to kill it.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        done: Callable[[], float],
        kill_at: float = 2.0,
    ) -> None:
        start = time.monotonic()
        self.samples: list[tuple[float, float]] = []
        with tempfile.TemporaryFile('w+') as errors:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
            )
            while process.poll() is None:
                share = done()
                self.samples.append((share, memory(process.pid)))
                if share >= kill_at:
                    process.kill()
                time.sleep(0.25)
            errors.seek(0)
            self.errors = errors.read()
        self.returncode = process.returncode
        self.seconds = time.monotonic() - start

    def memory_at(self, share: float) -> str:
        """MiB when so much of the work was done; nothing if it never was."""
        near, value = min(self.samples, key=lambda x: abs(x[0] - share))
        return f'{value:.0f}' if abs(near - share) < 0.05 else ''

    def row(self, name: str) -> list[object]:
        """Name, minutes, memory at a tenth, a half and the end, largest."""
        peak = max(value for _, value in self.samples)
        shares = [self.memory_at(share) for share in (0.1, 0.5, 0.99)]
        return [
            name,
            f'{self.seconds / 60:.1f}',
            *shares,
            round(peak),
        ]


def long_inference(bench: Bench, number: int) -> list[list[object]]:
    """Thousands of images, with a restart in the middle."""
    photos, out = bench.folder / 'many', bench.folder / 'out'
    damaged = write_photos(photos, number)
    checkpoint = bench.folder / 'whole/iter_12.pth'
    command = bench.command(
        'infer',
        *(bench.config, checkpoint, photos, '--recursive'),
        *('--out-dir', out, '--device', 'cpu', '--no-save-vis'),
    )
    ledger = out / 'images.jsonl'

    def done() -> float:
        lines = ledger.read_bytes().count(b'\n') if ledger.exists() else 0
        return lines / (number - damaged)

    first = Watched(command, bench.environment, done, kill_at=0.5)
    before = done()
    second = Watched(command, bench.environment, done)
    require(second.returncode == 3, second.errors.strip()[-300:])
    summary = json.loads((out / 'summary.json').read_text())
    require(len(summary['skipped']) == damaged, 'not all damage is named')
    found = sum(1 for _ in (out / 'preds').rglob('*.json'))
    require(found == number - damaged, f'{found} predictions')
    require(summary['kept'] >= int(before * (number - damaged)), 'lost work')
    return [
        first.row(f'{number} images, {damaged} damaged: killed half-way'),
        second.row(f'... the rest ({summary["kept"]} were kept)'),
    ]


def long_training(bench: Bench, steps: int) -> list[list[object]]:
    """A training of many steps."""
    work_dir = bench.folder / 'long'
    command = bench.command(
        'train',
        *(bench.config, '--work-dir', work_dir, '--cfg-options'),
        f'train_cfg.max_epochs={steps // 4}',
        f'train_cfg.val_interval={steps // 4}',
        f'default_hooks.checkpoint.interval={steps // 4}',
        'default_hooks.logger.interval=4',
    )

    def done() -> float:
        logs = list(work_dir.glob('*/vis_data/scalars.json'))
        if not logs:
            return 0.0
        lines = logs[0].read_text().splitlines()
        return json.loads(lines[-1]).get('step', 0) / steps if lines else 0.0

    run = Watched(command, bench.environment, done)
    require(run.returncode == 0, run.errors.strip()[-300:])
    return [run.row(f'training, {steps} steps with a worker')]


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.load',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--images', type=int, default=5000, help='default: 5000'
    )
    parser.add_argument(
        '--steps',
        type=int,
        default=2000,
        help='of the training, a multiple of 4 (default: 2000)',
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both, and print the table."""
    args = parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        done = bench.train(bench.folder / 'whole')
        require_success(done, 'the short training')
        rows = long_inference(bench, args.images)
        rows += long_training(bench, args.steps)
    heads = ['what', 'minutes', 'MiB at 10 %', 'at 50 %', 'at the end', 'most']
    print(tabulate(rows, heads, tablefmt='github'))


if __name__ == '__main__':
    main()
