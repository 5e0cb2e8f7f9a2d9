"""The ensemble network: its values and every derivative, against the plain."""

import pytest
import torch

from studies.regression1d.networks import (
    EnsembleNetwork,
    PlainNetwork,
    ensemble_logdensity_fn,
)
from studies.regression1d.settings import build_method
from studies.regression1d.training import method_losses

from .conftest import ensemble_of, pairs

METHODS = {
    'nce_plus': dict(
        type='NCEPlus', sigmas=(0.1, 0.8), num_samples=32, beta=0.025
    ),
    'ml_mcmc': dict(
        type='MLMCMC', step_size=0.05, num_steps=3, num_samples=32
    ),
    'dsm': dict(type='DSM', sigma=0.2, num_samples=32),
    'sm': dict(type='SM'),
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_ensemble_evaluates_each_network_at_its_own_points():
    plain = [PlainNetwork() for _ in range(3)]
    ensemble = ensemble_of(plain).double()
    x = torch.randn(3, 4).double()
    y = torch.randn(12, 5, 1).double()
    f = ensemble.logdensity_fn(x)(y).view(3, 4, 5)
    for model, x_own, y_own, f_own in zip(plain, x, y.view(3, 4, 5, 1), f):
        expected = model.double().logdensity_fn(x_own)(y_own)
        torch.testing.assert_close(f_own, expected)


@pytest.mark.parametrize('name', METHODS)
def test_losses_and_gradients_equal_those_of_lone_models(name):
    """Given the same generators, so the same samples."""
    plain = [PlainNetwork() for _ in range(3)]
    ensemble = ensemble_of(plain).double()
    method = build_method(METHODS[name])
    x, targets = torch.randn(2, 3, 4).double()
    losses = method_losses(
        method,
        ensemble.logdensity_fn(x),
        targets.view(-1, 1),
        [generator(seed) for seed in range(3)],
    ).view(3, 4)
    losses.sum().backward()
    for i, model in enumerate(plain):
        model.double()
        own = method_losses(
            method,
            model.logdensity_fn(x[i]),
            targets[i, :, None],
            generator(i),
        )
        torch.testing.assert_close(losses[i], own)
        own.sum().backward()
        for parameter_name, _, parameter in pairs(ensemble, i, model):
            found = ensemble.get_parameter(parameter_name).grad
            if parameter.grad is None:  # f' does not depend on the out bias
                assert found is None
                continue
            torch.testing.assert_close(
                found[i].view_as(parameter), parameter.grad
            )


def test_derivatives_agree_with_differences():
    """First and second ones, in y, x and all parameters."""
    ensemble = EnsembleNetwork(2, width=2).double()
    names = [name for name, _ in ensemble.named_parameters()]

    def f(x, y, *parameters):
        return ensemble_logdensity_fn(dict(zip(names, parameters)), x)(y)

    inputs = (
        torch.randn(2, 2).double().requires_grad_(),
        torch.randn(4, 2, 1).double().requires_grad_(),
        *ensemble.parameters(),
    )
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_third_derivatives_exist():
    """Score matching needs two in y and one in the weights."""
    ensemble = EnsembleNetwork(1)
    y = torch.zeros(1, 1, 1, requires_grad=True)
    value = ensemble.logdensity_fn(torch.zeros(1, 1))(y)
    for _ in range(2):
        (value,) = torch.autograd.grad(value.sum(), y, create_graph=True)
    value.sum().backward()
    assert ensemble.joint3_weight.grad.abs().sum() > 0


@pytest.mark.parametrize('batch_size, num_samples', [(0, 7), (4, 0)])
def test_no_candidates_give_no_values(batch_size, num_samples):
    y = torch.zeros(2 * batch_size, num_samples, 1)
    f = EnsembleNetwork(2).logdensity_fn(torch.zeros(2, batch_size))(y)
    assert f.shape == (2 * batch_size, num_samples)


def test_extreme_candidates_give_finite_values():
    y = torch.tensor([-1e30, -1e4, 0.0, 1e4, 1e30]).view(1, 5, 1)
    f = EnsembleNetwork(1).logdensity_fn(torch.zeros(1, 1))(y)
    assert f.isfinite().all()


def test_nan_is_not_hidden():
    y = torch.tensor([0.0, float('nan'), 1.0]).view(1, 3, 1)
    f = EnsembleNetwork(1).logdensity_fn(torch.zeros(1, 1))(y)
    assert f.isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    'sizes', [dict(num_models=0), dict(num_models=1, width=0)]
)
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match='at least one model'):
        EnsembleNetwork(**sizes)
