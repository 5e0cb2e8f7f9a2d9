"""Fit the density of boxes when a training ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed
from mmdet.registry import HOOKS
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..apis.checks import unwrapped
from ..core import BoxDensity, FixedBoxDensity
from ..evaluation.placed_quality import fit_model
from ..models import EnergyDetector
from .progress_hook import PassProgress

# How long processes wait for the first one to fit.
_LONGEST_FIT = timedelta(days=1)


@HOOKS.register_module()
class FitDensityHook(Hook):
    """Fits an ``EnergyDetector``'s density on the val split.

    It runs before the last checkpoint is written, which so holds the numbers.
    Without images to fit on, or for a density whose numbers are in the
    config, nothing happens. ``tools/fit_density.py`` does the same for a
    checkpoint. Where an ``EMAHook`` averages the weights, the averaged ones
    are what is fitted and stored. What an earlier training has fitted, for
    other weights, is forgotten when this one starts.

    Args:
        dataloader: Config of a loader of other images than those of the val
            split, through a test pipeline with annotations.
    """

    def __init__(self, dataloader: dict | None = None) -> None:
        self.dataloader = dataloader
        self._is_due = False

    def before_train(self, runner: Runner) -> None:
        """Start from cautious numbers."""
        density = _density_to_fit(runner)
        self._is_due = density is not None and not _is_over(runner)
        if density is None or not self._is_due:
            return
        density.forget()
        for averaged in _averaged_densities(runner):
            averaged.forget()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Fit after the last iteration.

        Not after the last epoch: a checkpoint may be written before that.
        """
        if self._is_due and _is_last(runner, batch_idx):
            self._is_due = False
            self._fit(runner)

    def after_train(self, runner: Runner) -> None:
        """Say so if the training ended before its last iteration."""
        if self._is_due:
            runner.logger.warning(
                'The training was stopped before its last iteration, so the '
                'density of boxes was not fitted and stays cautious. '
                'tools/fit_density.py fits it for a checkpoint.'
            )

    def _fit(self, runner: Runner) -> None:
        if self.dataloader is None and runner.val_loop is None:
            runner.logger.warning(
                'There is no val split to fit the density of boxes on. It '
                'stays cautious; tools/fit_density.py --split test fits it on '
                'images of the test split.'
            )
            return
        density = _density_to_fit(runner)
        assert density is not None
        with _first_process_shares(density):
            if is_main_process():
                self._fit_in_this_process(runner)
        for averaged in _averaged_densities(runner):
            averaged.set_extra_state(density.get_extra_state())

    def _fit_in_this_process(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        averages = _averages(runner)
        for hook in averages:
            hook.before_val_epoch(runner)  # the averaged weights
        model.eval()
        try:
            loader = _with_all_images(
                Runner.build_dataloader(self.dataloader)
                if self.dataloader
                else runner.val_dataloader
            )
            text = fit_model(model, PassProgress(loader, 'density'))
            runner.logger.info(text)
        except ValueError as error:
            runner.logger.warning(f'The density stays cautious: {error}')
        except Exception:  # nothing that was trained may be lost by a fit
            runner.logger.warning(
                'The density stays cautious, because its fit has failed. '
                'tools/fit_density.py fits it for a checkpoint.',
                exc_info=True,
            )
        model.train()
        for hook in averages:
            hook.after_val_epoch(runner)


def _density_to_fit(runner: Runner) -> BoxDensity | None:
    model = unwrapped(runner.model)
    if not isinstance(model, EnergyDetector):
        return None
    density = model.energy_model.density
    return None if isinstance(density, FixedBoxDensity) else density


def _averages(runner: Runner) -> list[EMAHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EMAHook)]


def _averaged_densities(runner: Runner) -> list[BoxDensity]:
    """Those of the models of averages; one of them is in the checkpoint."""
    return [
        hook.ema_model.module.energy_model.density
        for hook in _averages(runner)
    ]


def _is_over(runner: Runner) -> bool:
    """Whether nothing is left to train."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return runner.epoch >= runner.max_epochs
    return runner.iter >= runner.max_iters


def _is_last(runner: Runner, batch_idx: int) -> bool:
    """Whether this was the last iteration.

    A loop by epochs ends after its last epoch, whatever the number of the
    iteration is: a resumed one may have other batches.
    """
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return runner.epoch + 1 == runner.max_epochs and batch_idx + 1 == len(
            runner.train_dataloader
        )
    return runner.iter + 1 == runner.max_iters


def _with_all_images(loader: DataLoader) -> DataLoader:
    """All images of a split, where each process has a part of them."""
    if get_world_size() == 1:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size or 1,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )


@contextmanager
def _first_process_shares(density: BoxDensity) -> Iterator[None]:
    """All processes go on with the numbers of the first.

    They wait as long as a fit may take, which the usual time limit of
    processes does not allow for.
    """
    if get_world_size() == 1:
        yield
        return
    group = torch.distributed.new_group(timeout=_LONGEST_FIT, backend='gloo')
    yield
    state = density.get_extra_state()
    torch.distributed.broadcast(state, 0, group=group)
    density.set_extra_state(state)
    torch.distributed.destroy_process_group(group)
