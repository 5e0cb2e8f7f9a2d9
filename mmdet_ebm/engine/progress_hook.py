"""Progress of a run on the screen, and a line for what is done."""

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader
from tqdm import tqdm

# Those of small, medium and large objects are in the log file, and the gain
# has a line by itself.
_AP = re.compile(r'(?:.*/)?(bbox|segm)_mAP(?:_(\d+))?$')
_NOT_SHOWN = re.compile(r'.*_mAP(_90)?_(s|m|l|plain|gain)$')
# Beside the losses, what tells if a model learns.
_FIGURES = r'acc|acc_energy|logdensity_gap'


class ProgressHook(Hook):
    """Shows a bar for each epoch, validation and test, and then a line.

    Without a terminal there are no bars. Of several processes, the first one
    shows them. Trainings by iterations have a bar from one validation to the
    next. It says at the end where the results are.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._what = ''
        self._start = self._seconds = 0.0
        self._first = self._batches = 0

    def before_train(self, runner: Runner) -> None:
        """Say what is trained, and where it goes on."""
        loop = runner.train_loop
        images = len(loop.dataloader.dataset)
        length = (
            f'{loop.max_iters} iterations'
            if _by_iterations(runner)
            else f'{loop.max_epochs} epochs of {len(loop.dataloader)} batches'
        )
        _say(f'training on {images} images, {length}')
        if runner.cfg.get('load_from'):
            begin = (
                f'resumed after iteration {runner.iter} from'
                if runner.iter
                else 'weights:'
            )
            _say(f'{begin} {short_path(runner.cfg.load_from)}')
        _say_log(runner)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        """Begin an epoch; a resumed one begins in its middle."""
        if self._bar is not None:
            return
        loop = runner.train_loop
        if _by_iterations(runner):
            end = min(
                loop.max_iters,
                (runner.iter // loop.val_interval + 1) * loop.val_interval,
            )
            self._open(f'to iteration {end}', end, batch_idx)
        else:
            self._open(
                f'epoch {runner.epoch + 1}/{loop.max_epochs}',
                len(loop.dataloader),
                batch_idx,
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Show means of the epoch so far."""
        batches = self._batches + 1
        loss = _means(runner, 'loss', batches)
        self._bar.set_postfix_str(loss, refresh=False)
        self._advance()
        if batch_idx + 1 == self._bar.total:
            parts = _means(runner, r'.*loss_.*', batches)
            # The only part of a loss is the loss.
            results = [f'{loss} ({parts})' if ',' in parts else loss]
            results.append(_means(runner, _FIGURES, batches))
            self._close(', '.join(filter(None, results)))

    def before_val_epoch(self, runner: Runner) -> None:
        """Begin a validation."""
        self._open('validation', len(runner.val_dataloader))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Count a batch."""
        self._advance()

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        """Show the metrics."""
        self._close(format_metrics(metrics or {}))

    def before_test(self, runner: Runner) -> None:
        """Say what is tested."""
        loader = runner.test_dataloader
        _say(f'testing on {len(loader.dataset)} images')
        _say_log(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """Begin a test."""
        self._open('test', len(runner.test_dataloader))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Count a batch."""
        self._advance()

    def after_test_epoch(self, runner: Runner, metrics=None) -> None:
        """Show the metrics and where they are."""
        self._close(format_metrics(metrics or {}))
        written = Path(runner.log_dir, f'{runner.timestamp}.json')
        if written.exists():
            _say(f'metrics: {short_path(written)}')

    def after_train(self, runner: Runner) -> None:
        """Say where the checkpoints are."""
        files = runner.message_hub.runtime_info
        for key, name in (('last_ckpt', 'checkpoint'), ('best_ckpt', 'best')):
            if files.get(key):
                _say(f'{name}: {short_path(files[key])}')

    def _open(self, what: str, total: int, initial: int = 0) -> None:
        self._what, self._first, self._batches = what, initial, 0
        self._start = time.perf_counter()
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=what,
            unit=' batches',
            leave=False,
            # None: if it is no terminal.
            disable=None if is_main_process() else True,
        )

    def _advance(self) -> None:
        self._batches += 1
        self._seconds = time.perf_counter() - self._start
        self._bar.update()

    def _close(self, results: str) -> None:
        self._bar.close()
        _say(
            f'{self._what}: {self._first + self._batches}/{self._bar.total} '
            f'batches in {tqdm.format_interval(self._seconds)} '
            f'({self._batches / self._seconds:.1f}/s)'
            + (f', {results}' if results else '')
        )
        self._bar = None


def format_metrics(metrics: dict[str, float]) -> str:
    """AP in per cent, other metrics as they are."""
    parts = []
    for name, value in metrics.items():
        match = _AP.match(name)
        if match:
            kind = 'AP' if match[1] == 'bbox' else 'mask AP'
            parts.append(f'{kind}{match[2] or ""} {100 * value:.1f}')
        elif not _NOT_SHOWN.match(name) and isinstance(value, float):
            parts.append(f'{name} {value:.4g}')
    return ', '.join(parts)


def _means(runner: Runner, names: str, batches: int) -> str:
    return ', '.join(
        f'{name.removeprefix("train/")} {values.mean(batches):.4f}'
        for name, values in runner.message_hub.log_scalars.items()
        if re.fullmatch(f'train/({names})', name)
    )


def say(text: str) -> None:
    """Print between progress bars, at once also into a pipe."""
    tqdm.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    if is_main_process():
        say(text)


def _say_log(runner: Runner) -> None:
    _say(f'log: {short_path(runner.logger.log_file)}')


def _by_iterations(runner: Runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)


def short_path(path: str | Path) -> str:
    """A path as it can be typed in the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith('..') else relative


class PassProgress:
    """A loader that is read twice and shows how far each pass is.

    Args:
        loader: The loader.
        what: What the passes are for.
    """

    def __init__(self, loader: DataLoader, what: str) -> None:
        self.loader = loader
        self.what = what
        self.passes = 0

    def __iter__(self) -> Iterator[dict]:
        self.passes += 1
        return iter(
            tqdm(
                self.loader,
                desc=f'{self.what}, pass {self.passes} of 2',
                unit=' batches',
                leave=False,
                disable=None,
            )
        )
