"""Ensembles train as separate runs do; every method learns."""

import copy
from dataclasses import replace

import pytest
import torch

from studies.regression1d import training
from studies.regression1d.data import PROBLEMS
from studies.regression1d.evaluation import evaluate
from studies.regression1d.settings import (
    METHODS,
    TrainingSettings,
    build_method,
)
from studies.regression1d.training import EnsembleTrainer, method_losses

from .conftest import member_of, pairs

NCE_PLUS = dict(type='NCEPlus', sigmas=(0.1, 0.8), num_samples=64, beta=0.025)
SMALL = TrainingSettings(num_models=3, num_points=80, num_epochs=2)


def trainer(settings=SMALL, method=NCE_PLUS, dataset=1, **options):
    return EnsembleTrainer(dataset, build_method(method), settings, **options)


def assert_same_models(network, other, models=slice(None)):
    for name, parameter in network.named_parameters():
        if name != 'out_bias':  # the loss of NCE+ does not depend on it
            torch.testing.assert_close(
                parameter[models],
                other.state_dict()[name],
                rtol=1e-4,
                atol=1e-6,
            )


def test_member_is_what_a_run_of_fewer_models_gives():
    """80 points in batches of 32: the last batch is smaller."""
    many, one = trainer(), trainer(replace(SMALL, num_models=1))
    for _ in range(2):
        losses, own = many.train_epoch(), one.train_epoch()
        torch.testing.assert_close(losses[:1], own)
    assert_same_models(many.network, one.network, slice(0, 1))


@pytest.mark.parametrize(
    'per_pass, num_threads, largest',
    [(2, 1, 2), (3, 1, 3), (3, 2, 2), (3, 3, 1)],
)
def test_how_models_share_passes_does_not_change_them(
    monkeypatch, per_pass, num_threads, largest
):
    one_each, candidates = trainer(num_threads=3), 32 * 64 * per_pass
    monkeypatch.setattr(
        training, 'candidates_per_pass', lambda device: candidates
    )
    other = trainer(num_threads=num_threads)
    sizes = [len(range(3)[models]) for models in other.passes]
    assert max(sizes) == largest and sum(sizes) == 3
    for _ in range(2):
        torch.testing.assert_close(other.train_epoch(), one_each.train_epoch())
    assert_same_models(other.network, one_each.network)


def test_many_samples_still_leave_one_model_for_each_pass(monkeypatch):
    monkeypatch.setattr(training, 'candidates_per_pass', lambda device: 1)
    assert len(trainer().passes) == 3


def test_member_equals_a_plain_training_of_a_plain_network():
    """The textbook loop on the same data, order and samples: an Adam of its
    own, torch's modules, float32."""
    ensemble = trainer()
    model = 1
    network = member_of(ensemble.network, model)
    order_generator, noise_generator = (
        torch.Generator().set_state(generators[model].get_state())
        for generators in (ensemble.generators, ensemble.noise_generators)
    )
    method = build_method(NCE_PLUS)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(2):
        ensemble.train_epoch()
        order = torch.randperm(80, generator=order_generator)
        for index in order.split(32):
            x, y = ensemble.x[model, index], ensemble.y[model, index]
            losses = method_losses(
                method, network.logdensity_fn(x), y[:, None], noise_generator
            )
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    for name, member, own in pairs(ensemble.network, model, network):
        if name != 'out_bias':  # the loss does not depend on it
            torch.testing.assert_close(member, own, rtol=1e-4, atol=1e-5)


def test_models_have_their_own_data_start_and_order():
    ensemble = trainer()
    assert not torch.equal(ensemble.x[0], ensemble.x[1])
    assert not torch.equal(
        ensemble.network.x2_weight[0], ensemble.network.x2_weight[1]
    )
    other_seed = trainer(replace(SMALL, seed=1))
    assert not torch.equal(ensemble.x, other_seed.x)


def test_resumed_training_gives_the_same_numbers():
    whole, first = trainer(), trainer()
    whole.train_epoch(), first.train_epoch()
    second = trainer()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(second.train_epoch(), whole.train_epoch())
    for own, other in zip(
        second.network.parameters(), whole.network.parameters()
    ):
        assert torch.equal(own, other)


def test_state_of_another_training_is_refused():
    state = trainer().state_dict()
    with pytest.raises(ValueError, match='other settings'):
        trainer(replace(SMALL, lr=1e-2)).load_state_dict(state)


# Factor by which 300 steps at four times the learning rate, with few samples,
# must lower the mean D_KL of two models.
FACTORS = dict(
    ml_is=2.5, kld_is=2.5, nce=2.5, nce_plus=2.5, ml_mcmc=1.5, sm=1.5, dsm=1.5
)


@pytest.mark.parametrize('name', FACTORS)
def test_short_training_lowers_the_divergence(name):
    method = dict(METHODS[name])
    for setting, most in (('num_samples', 32), ('num_steps', 8)):
        if setting in method:
            method[setting] = min(method[setting], most)
    short = trainer(
        TrainingSettings(num_models=2, num_points=960, lr=4e-3), method
    )
    before = evaluate(short.network, PROBLEMS[1], 256).mean()
    for _ in range(10):
        short.train_epoch()
    after = evaluate(short.network, PROBLEMS[1], 256).mean()
    assert after < before / FACTORS[name]


def test_bad_number_of_threads_is_refused():
    with pytest.raises(ValueError, match='num_threads must be .*got 0'):
        trainer(num_threads=0)
