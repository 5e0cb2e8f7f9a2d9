"""Fit the density of boxes when a training ends."""

from mmdet.registry import HOOKS
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from ..apis.checks import unwrapped
from ..core import FixedBoxDensity
from ..evaluation.placed_quality import fit_model
from ..models import EnergyDetector
from .progress_hook import PassProgress


@HOOKS.register_module()
class FitDensityHook(Hook):
    """Fits an ``EnergyDetector``'s density on the val split.

    It runs before the last checkpoint is written, which so holds the numbers.
    Without images to fit on, or for a density whose numbers are in the
    config, nothing happens. ``tools/fit_density.py`` does the same for a
    checkpoint. Where an ``EMAHook`` averages the weights, the averaged ones
    are what is fitted and stored.

    Args:
        dataloader: Config of a loader of other images than those of the val
            split, through a test pipeline with annotations.
    """

    def __init__(self, dataloader: dict | None = None) -> None:
        self.dataloader = dataloader

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Fit after the last iteration.

        Not after the last epoch: a checkpoint may be written before that.
        """
        if runner.iter + 1 == runner.max_iters:
            self._fit(runner)

    def _fit(self, runner: Runner) -> None:
        model = unwrapped(runner.model)
        if not isinstance(model, EnergyDetector) or isinstance(
            model.energy_model.density, FixedBoxDensity
        ):
            return
        if self.dataloader is None and runner.val_loop is None:
            runner.logger.warning(
                'There is no val split to fit the density of boxes on. It '
                'stays cautious; tools/fit_density.py fits it later.'
            )
            return
        density = model.energy_model.density
        averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        if is_main_process():
            loader = (
                Runner.build_dataloader(self.dataloader)
                if self.dataloader
                else runner.val_dataloader
            )
            for hook in averages:
                hook.before_val_epoch(runner)  # the averaged weights
            model.eval()
            try:
                text = fit_model(model, PassProgress(loader, 'density'))
                runner.logger.info(text)
            except ValueError as error:
                runner.logger.warning(f'The density stays cautious: {error}')
            model.train()
            for hook in averages:
                hook.after_val_epoch(runner)
        # All processes go on with the numbers of the first.
        state = density.get_extra_state().to(next(model.parameters()).device)
        broadcast(state)
        density.set_extra_state(state)
        for hook in averages:  # their model is the one of the checkpoint
            averaged = hook.ema_model.module.energy_model
            averaged.density.set_extra_state(state)
