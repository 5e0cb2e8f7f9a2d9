"""What all training methods promise, and what each one's optimum is."""

import math

import pytest
import torch
from scipy.optimize import brentq

from mmdet_ebm.core import (
    DSM,
    KLDIS,
    MLIS,
    MLMCMC,
    NCE,
    SM,
    IoUNet,
    NCEPlus,
    SamplingMethod,
)

SIGMAS = (0.1, 0.8)
ANY_DIMENSION = dict(
    mlis=MLIS(SIGMAS, 16),
    kldis=KLDIS(SIGMAS, 16, 0.05),
    mlmcmc=MLMCMC(0.01, 3, 16),
    nce=NCE(SIGMAS, 16),
    nceplus=NCEPlus(SIGMAS, 16, 0.1),
    sm=SM(),
    dsm=DSM(0.1, 16),
)
METHODS = dict(ANY_DIMENSION, iounet=IoUNet(16))

every_method = pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(y, weight):
    """Smooth, with curvature; weights (), (D,) or (N, 1, 1)."""
    return ((weight * y).tanh() - weight * y.square()).sum(-1)


@every_method
def test_one_loss_per_instance_from_the_generator(method):
    targets = 0.1 * torch.randn(5, 4)
    before = targets.clone()
    weight = torch.tensor(0.7)
    losses = [
        method(lambda y: network(y, weight), targets, generator(s))
        for s in (1, 1, 2)
    ]
    assert losses[0].shape == (5,) and losses[0].isfinite().all()
    assert torch.equal(losses[0], losses[1])
    assert isinstance(method, SM) or not torch.equal(losses[0], losses[2])
    assert torch.equal(targets, before)


SAMPLING = {
    name: method
    for name, method in METHODS.items()
    if isinstance(method, SamplingMethod)
}


@pytest.mark.parametrize('method', SAMPLING.values(), ids=SAMPLING)
def test_losses_of_some_rows_are_those_rows_of_the_losses(method):
    """What all but score matching promise: draw once, judge in parts."""

    def logdensity(y):
        return network(y, torch.tensor(0.7))

    targets = 0.1 * torch.randn(5, 4)
    candidates, *draws = method.draw(logdensity, targets, generator())
    assert all(
        len(d) == 5 and not d.requires_grad for d in (candidates, *draws)
    )
    values = logdensity(candidates)
    parts = [
        method.losses(values[rows], *(d[rows] for d in draws))
        for rows in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(
        torch.cat(parts), method(logdensity, targets, generator())
    )


def test_only_score_matching_cannot_be_judged_in_parts():
    assert set(METHODS) - set(SAMPLING) == {'sm', 'dsm'}


@pytest.mark.parametrize('method', ANY_DIMENSION.values(), ids=ANY_DIMENSION)
@pytest.mark.parametrize('dim', [1, 3])
def test_any_dimension(method, dim):
    weight = torch.tensor(0.5, requires_grad=True)
    losses = method(
        lambda y: network(y, weight), torch.randn(6, dim), generator()
    )
    losses.sum().backward()
    assert losses.shape == (6,) and weight.grad != 0


@every_method
def test_instances_do_not_influence_each_other(method):
    """The gradient of one's loss does not change with another's target."""

    def gradient(other):
        weight = torch.full((2, 1), 0.6, requires_grad=True)
        targets = torch.stack([torch.full((4,), 0.1), other])
        losses = method(
            lambda y: network(y, weight[:, :, None]), targets, generator()
        )
        losses[0].backward()
        return weight.grad

    one, two = gradient(torch.zeros(4)), gradient(torch.full((4,), 0.3))
    assert one[0] != 0 and one[1] == 0
    torch.testing.assert_close(one, two)


@every_method
def test_no_instances_give_a_zero_with_a_graph(method):
    weight = torch.tensor(0.5, requires_grad=True)
    losses = method(lambda y: network(y, weight), torch.zeros(0, 4))
    assert losses.shape == (0,)
    losses.sum().backward()
    assert weight.grad == 0


@every_method
@pytest.mark.parametrize('scale', [1e4, -1e4])
def test_extreme_log_densities_stay_finite(method, scale):
    weight = torch.tensor(scale, requires_grad=True)
    losses = method(
        lambda y: weight * y.sum(-1) + weight, torch.zeros(3, 4), generator()
    )
    losses.sum().backward()
    assert losses.isfinite().all() and weight.grad.isfinite()


@every_method
def test_works_where_gradients_were_switched_off_and_on_again(method):
    """Validation losses are computed without gradients."""
    weight = torch.tensor(0.5)
    targets = 0.1 * torch.randn(3, 4)
    expected = method(lambda y: network(y, weight), targets, generator())
    with torch.no_grad():
        losses = method(lambda y: network(y, weight), targets, generator())
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    'method',
    [
        # Its gradient is by design not that of its value: MLMCMC is left out.
        m
        for name, m in METHODS.items()
        if name != 'mlmcmc'
    ],
    ids=[name for name in METHODS if name != 'mlmcmc'],
)
def test_parameter_gradient_against_finite_differences(method):
    targets = 0.1 * torch.randn(2, 4, dtype=torch.float64)
    weight = torch.tensor(
        [0.4, -0.3, 0.8, 0.5], dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(
        lambda w: method(lambda y: network(y, w), targets, generator()),
        (weight,),
    )


S, LAMBDA, BETA, NOISE = 0.3, 0.15, 0.5, (0.2, 0.6)
MEAN_SQUARE = sum(sigma**2 for sigma in NOISE) / 2
# Method, and 1 / a at the optimum of f = -a |y|^2 / 2 for data of variance v.
MINIMISERS = dict(
    mlis=(MLIS(NOISE, 512), lambda v: v),
    kldis=(KLDIS(NOISE, 512, 0.2), lambda v: v + 0.2**2),
    # The chain's stationary variance is 1 / (a (1 - lambda^2 a / 4)); that of
    # the data makes 1 / a smaller by lambda^2 / 4.
    mlmcmc=(
        MLMCMC(LAMBDA, 60, 4),
        lambda v: 0.5 * (v + math.sqrt(v**2 - v * LAMBDA**2)),
    ),
    nce=(NCE(NOISE, 512), lambda v: v),
    sm=(SM(), lambda v: v),
    dsm=(DSM(0.2, 64), lambda v: v + 0.2**2),
    nceplus=(NCEPlus(NOISE, 512, BETA), lambda v: v + BETA**2 * MEAN_SQUARE),
)


@pytest.mark.parametrize('name', MINIMISERS)
@pytest.mark.parametrize('dim', [1, 4])
def test_minimiser_has_the_known_variance(name, dim):
    """Where the loss's gradient in a vanishes, for 2,000 targets.

    The sample's own variance is what a fit can know. Within 6 %: what is left
    is the noise of the samples, and for NCE and KLD-IS in 4-D the bias of a
    finite M.
    """
    method, variance_of = MINIMISERS[name]
    targets = S * torch.randn(2000, dim, generator=generator(1))
    sample = targets.square().mean().item()

    def gradient(log_precision):
        log_precision = torch.tensor(log_precision, requires_grad=True)
        losses = method(
            lambda y: -0.5 * log_precision.exp() * y.square().sum(-1),
            targets,
            generator(2),
        )
        return torch.autograd.grad(losses.mean(), log_precision)[0].item()

    expected = variance_of(sample)
    # A bracket of a factor 2 to each side; the gradient's sign must change.
    root = brentq(
        gradient, -math.log(2 * expected), -math.log(expected / 2), xtol=1e-3
    )
    assert math.exp(-root) == pytest.approx(expected, rel=0.06)
