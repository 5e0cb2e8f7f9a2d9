"""When the density is fitted, on which images, and what a failure costs."""

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader, DistributedSampler

from mmdet_ebm.core import CAUTIOUS, BoxDensity, FixedBoxDensity
from mmdet_ebm.engine import FitDensityHook, fit_density_hook, join_processes

from ..evaluation.held_out import fittable_model
from ..processes import run_forked

BATCHES = 5


@pytest.fixture
def model():
    model = fittable_model()
    model.energy_model.density.set_numbers(temperature=9.0, vote_share=1.0)
    model.energy_model.density.fitted = True
    return model


def runner_of(model, loop=EpochBasedTrainLoop, **state):
    """A runner in its third epoch of four, of five batches each."""
    usual = dict(
        epoch=2,
        max_epochs=4,
        iter=10,
        max_iters=20,
        train_dataloader=range(BATCHES),
        val_dataloader=DataLoader(range(6), batch_size=2),
        val_loop=object(),
        hooks=[],
        logger=logging.getLogger('mmengine'),
    )
    return SimpleNamespace(
        model=model, train_loop=object.__new__(loop), **{**usual, **state}
    )


def fits(monkeypatch, result='it was fitted'):
    """Calls of the fit from now on: the images that it got."""
    seen = []

    def fit(model, batches):
        seen.append([int(i) for batch in batches for i in batch])
        if isinstance(result, Exception):
            raise result
        model.energy_model.density.set_numbers(temperature=7.5)
        return result

    monkeypatch.setattr(fit_density_hook, 'fit_model', fit)
    return seen


def last_batch(hook, runner, batch=BATCHES - 1):
    hook.after_train_iter(runner, batch)


def test_what_was_fitted_for_other_weights_is_forgotten(model):
    """Else validation would follow it, and checkpoints call it fitted."""
    FitDensityHook().before_train(runner_of(model, iter=0, epoch=0))
    density = model.energy_model.density
    assert density.numbers() == BoxDensity(**CAUTIOUS).numbers()
    assert not density.fitted


def test_a_training_that_is_over_keeps_its_fit(model):
    hook = FitDensityHook()
    for runner in (
        runner_of(model, epoch=4, iter=18),
        runner_of(model, IterBasedTrainLoop, iter=20),
    ):
        hook.before_train(runner)
        hook.after_train(runner)
    assert model.energy_model.density.fitted
    assert model.energy_model.density.temperature == 9


def test_numbers_of_the_config_stay(model, monkeypatch, caplog):
    model.energy_model.density = FixedBoxDensity(temperature=3.0)
    seen, hook = fits(monkeypatch), FitDensityHook()
    runner = runner_of(model, epoch=3)
    hook.before_train(runner)
    last_batch(hook, runner)
    hook.after_train(runner)
    assert not seen and not caplog.records
    assert model.energy_model.density.temperature == 3


@pytest.mark.parametrize(
    'state, batch, due',
    [
        (dict(epoch=3, iter=19), 4, True),
        (dict(epoch=3, iter=18), 3, False),
        # Resumed with other batches the iterations are other ones.
        (dict(epoch=3, iter=56), 4, True),
        (dict(epoch=3, iter=12), 4, True),
        (dict(epoch=2, iter=19), 4, False),
    ],
)
def test_the_last_epoch_ends_in_a_fit(model, monkeypatch, state, batch, due):
    seen, hook = fits(monkeypatch), FitDensityHook()
    hook.before_train(runner_of(model))
    last_batch(hook, runner_of(model, **state), batch)
    assert bool(seen) is due
    assert (model.energy_model.density.temperature == 7.5) is due


def test_a_loop_by_iterations_ends_in_a_fit(model, monkeypatch):
    seen, hook = fits(monkeypatch), FitDensityHook()
    hook.before_train(runner_of(model, IterBasedTrainLoop))
    for number in (18, 19):
        assert not seen
        last_batch(hook, runner_of(model, IterBasedTrainLoop, iter=number))
    assert len(seen) == 1


def test_a_training_that_was_stopped_says_that_nothing_was_fitted(
    model, monkeypatch, caplog
):
    seen, hook = fits(monkeypatch), FitDensityHook()
    runner = runner_of(model)
    hook.before_train(runner)
    last_batch(hook, runner)
    hook.after_train(runner)
    assert not seen and 'stopped before its last' in caplog.text

    caplog.clear()
    runner = runner_of(model, epoch=3)
    last_batch(hook, runner)
    hook.after_train(runner)
    assert seen and 'stopped' not in caplog.text


@pytest.mark.parametrize(
    'error, told',
    [
        (ValueError('no detection matches'), 'no detection matches'),
        (AttributeError('a bug'), 'its fit has failed'),
    ],
)
def test_a_fit_that_fails_does_not_end_the_training(
    model, monkeypatch, caplog, error, told
):
    fits(monkeypatch, error)
    model.train()
    hook = FitDensityHook()
    runner = runner_of(model, epoch=3)
    hook.before_train(runner)
    last_batch(hook, runner)
    assert model.training and not model.energy_model.density.fitted
    assert 'stays cautious' in caplog.text and told in caplog.text
    assert str(error) in caplog.text


def fit_in_two_processes(model):
    """Each has half of the images; the first fits on all of them."""
    join_processes(Config(dict(launcher='pytorch', model=dict())))
    seen = fits(pytest.MonkeyPatch())
    images = list(range(6))
    loader = DataLoader(
        images, batch_size=2, sampler=DistributedSampler(images, shuffle=False)
    )
    hook, runner = FitDensityHook(), runner_of(model, val_dataloader=loader)
    hook.before_train(runner)
    runner.epoch = 3
    last_batch(hook, runner)
    assert seen == ([images] if dist.get_rank() == 0 else [])
    assert model.energy_model.density.temperature == 7.5


def test_the_first_process_fits_on_all_images_and_tells_the_others(model):
    assert run_forked(fit_in_two_processes, model, processes=2) == [0, 0]


def test_average_densities_hold_the_same_numbers(model, monkeypatch):
    average = fittable_model()
    average.energy_model.density.fitted = True
    hook = SimpleNamespace(
        ema_model=SimpleNamespace(module=average),
        before_val_epoch=lambda runner: None,
        after_val_epoch=lambda runner: None,
    )
    monkeypatch.setattr(fit_density_hook, 'EMAHook', SimpleNamespace)
    fits(monkeypatch)
    fit, runner = FitDensityHook(), runner_of(model, epoch=3, hooks=[hook])
    fit.before_train(runner)
    assert not average.energy_model.density.fitted
    last_batch(fit, runner)
    assert torch.equal(
        average.energy_model.density.get_extra_state(),
        model.energy_model.density.get_extra_state(),
    )
