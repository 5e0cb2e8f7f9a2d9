"""What all training methods promise, and what each one's optimum is."""

import math

import pytest
import torch
from hypothesis import given
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
    separation,
)

from ...properties import few, numbers, seeds
from ..conftest import generator

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


def network(y, weight):
    """Smooth, with curvature; weights (), (D,) or (N, 1, 1)."""
    return ((weight * y).tanh() - weight * y.square()).sum(-1)


@every_method
def test_one_loss_per_instance_from_the_generator(method):
    targets = 0.1 * torch.randn(5, 4)
    before = targets.clone()
    weight = torch.tensor(0.7)
    losses = [
        method(lambda y: network(y, weight), targets, generator(s))[0]
        for s in (1, 1, 2)
    ]
    assert losses[0].shape == (5,) and losses[0].isfinite().all()
    assert torch.equal(losses[0], losses[1])
    assert isinstance(method, SM) or not torch.equal(losses[0], losses[2])
    assert torch.equal(targets, before)


@every_method
@few
@given(seeds, numbers(-1e4, 1e4), numbers(0, 8))
def test_a_loss_is_finite_and_of_its_object_alone(method, seed, level, slope):
    """Also where f is large or steep."""
    targets = torch.randn(3, 4, generator=generator(seed))

    def f(y):
        return level - slope * (y - 0.5).square().sum(-1)

    losses, _ = method(f, targets, generator(seed))
    assert losses.shape == (3,) and losses.isfinite().all()


@every_method
def test_info_holds_the_values_of_f_without_a_graph(method):
    weight = torch.tensor(0.7, requires_grad=True)
    targets = 0.1 * torch.randn(5, 4)
    seen = []

    def logdensity(y):
        seen.append((y.detach(), network(y, weight)))
        return seen[-1][1]

    _, info = method(logdensity, targets, generator())
    assert not info.truth.requires_grad and not info.noise.requires_grad
    # Both from one evaluation, or the truth after the samples.
    values = torch.cat([f for _, f in seen[::-1]], 1)
    expected = torch.cat([info.truth[:, None], info.noise], 1)
    assert torch.equal(values[:, : expected.shape[1]], expected)
    if type(method) is not NCEPlus:
        truth = network(targets, weight)
        torch.testing.assert_close(info.truth, truth, check_stride=False)
    assert info.noise.shape[1] == (0 if isinstance(method, SM) else 16)


@every_method
def test_num_candidates_is_what_the_loss_evaluates_at_once(method):
    shapes = []

    def logdensity(y):
        if torch.is_grad_enabled():  # neither chains nor info
            shapes.append(y.shape)
        return network(y, torch.tensor(0.7))

    method(logdensity, torch.zeros(3, 4))
    assert shapes[-1] == (3, method.num_candidates, 4)


@every_method
def test_the_truth_at_the_top_of_a_bowl_is_told_from_all_noise(method):
    targets = 0.1 * torch.randn(5, 4)
    _, info = method(
        lambda y: -(y - targets[:, None]).square().sum(-1), targets
    )
    figures = separation(info.truth, info.noise)
    if isinstance(method, SM):
        assert set(figures) == {'logdensity_truth'}
    elif type(method) is not NCEPlus:  # whose truth is shifted
        assert figures['logdensity_truth'] == 0
        assert figures['logdensity_gap'] > 0 and figures['acc_energy'] == 100


def test_only_score_matching_needs_curvature():
    assert [n for n, m in METHODS.items() if m.needs_curvature] == ['sm']


@pytest.mark.parametrize('name', sorted(set(METHODS) - {'sm'}))
def test_a_part_of_a_batch_draws_what_it_draws_alone(name):
    method, targets = METHODS[name], 0.1 * torch.randn(6, 4)

    def logdensity(y):
        return -y.square().sum(-1)

    together, _ = method(logdensity, targets, [generator(1), generator(2)])
    alone = [
        method(logdensity, targets[:3], generator(1))[0],
        method(logdensity, targets[3:], generator(2))[0],
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize('method', ANY_DIMENSION.values(), ids=ANY_DIMENSION)
@pytest.mark.parametrize('dim', [1, 3])
def test_any_dimension(method, dim):
    weight = torch.tensor(0.5, requires_grad=True)
    losses, _ = method(
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
        losses, _ = method(
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
    losses, _ = method(lambda y: network(y, weight), torch.zeros(0, 4))
    assert losses.shape == (0,)
    losses.sum().backward()
    assert weight.grad == 0


@every_method
@pytest.mark.parametrize('scale', [1e4, -1e4])
def test_extreme_log_densities_stay_finite(method, scale):
    weight = torch.tensor(scale, requires_grad=True)
    losses, _ = method(
        lambda y: weight * y.sum(-1) + weight, torch.zeros(3, 4), generator()
    )
    losses.sum().backward()
    assert losses.isfinite().all() and weight.grad.isfinite()


@every_method
def test_works_where_gradients_were_switched_off_and_on_again(method):
    """Validation losses are computed without gradients."""
    weight = torch.tensor(0.5)
    targets = 0.1 * torch.randn(3, 4)
    expected, _ = method(lambda y: network(y, weight), targets, generator())
    with torch.no_grad():
        losses, _ = method(lambda y: network(y, weight), targets, generator())
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
        lambda w: method(lambda y: network(y, w), targets, generator())[0],
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
        losses, _ = method(
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
