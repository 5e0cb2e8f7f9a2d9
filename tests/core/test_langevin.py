"""The Langevin chain as a sampler.

On f = -a y^2 / 2 the chain is linear, y <- c y + lambda e with
c = 1 - lambda^2 a / 2: after L steps from y0 its mean is c^L y0 and its
variance lambda^2 (1 - c^2L) / (1 - c^2), which tends to
1 / (a (1 - lambda^2 a / 4)).
"""

import math

import pytest
import torch

from mmdet_ebm.core import MLMCMC, langevin_chain

PRECISION, STEP = 4.0, 0.5
SHRINK = 1 - STEP**2 * PRECISION / 2
CHAINS = 100_000
# Two-sided tests of mean and variance at 5 standard errors, in 3 cases: a
# right chain fails with a probability below 4e-6.
ERRORS = 5


def gaussian(y):
    return -0.5 * PRECISION * y.square().sum(-1)


@pytest.mark.parametrize('num_steps', [1, 4, 60])
def test_mean_and_variance_on_a_gaussian(num_steps):
    start = 1.5
    y = langevin_chain(
        gaussian,
        torch.full((1, CHAINS, 1), start),
        STEP,
        num_steps,
        torch.Generator().manual_seed(num_steps),
    )
    mean = SHRINK**num_steps * start
    variance = STEP**2 * (1 - SHRINK ** (2 * num_steps)) / (1 - SHRINK**2)
    if num_steps == 60:
        assert variance == pytest.approx(
            1 / (PRECISION * (1 - STEP**2 * PRECISION / 4)), rel=1e-6
        )
    assert abs(y.mean().item() - mean) < ERRORS * math.sqrt(variance / CHAINS)
    assert abs(y.var().item() - variance) < ERRORS * variance * math.sqrt(
        2 / CHAINS
    )


def test_leaves_parameter_gradients_alone_and_keeps_no_graph():
    weight = torch.tensor(2.0, requires_grad=True)
    weight.grad = torch.tensor(7.0)
    start = torch.zeros(2, 3, 1)
    y = langevin_chain(lambda y: -weight * y.square().sum(-1), start, 0.1, 5)
    assert weight.grad == 7 and not y.requires_grad
    assert (start == 0).all() and not start.requires_grad


def test_zero_steps_stay():
    start = torch.randn(2, 3, 1)
    assert torch.equal(langevin_chain(gaussian, start, 0.1, 0), start)


def test_ml_mcmc_evaluates_all_chains_together_and_the_ends_once():
    shapes = []

    def logdensity(y):
        shapes.append((tuple(y.shape), y.requires_grad))
        return gaussian(y)

    MLMCMC(0.1, 4, 8)(logdensity, torch.zeros(3, 2))
    # Four steps of 8 chains, then their ends beside the target.
    assert shapes == [((3, 8, 2), True)] * 4 + [((3, 9, 2), False)]


def test_ml_mcmc_gradient_is_that_of_the_ends():
    """The chain's dependence on the parameters must not be differentiated."""
    weight = torch.tensor(3.0, requires_grad=True)
    targets = torch.full((2, 1), 0.5)
    seen = []

    def logdensity(y):
        seen.append(y.detach())
        return -weight * y.square().sum(-1)

    MLMCMC(0.3, 5, 16)(logdensity, targets).sum().backward()
    squares = seen[-1].square().sum(-1)
    expected = -(squares[:, 1:].mean(1) - squares[:, 0]).sum()
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize('arguments', [(0.0, 4, 4), (0.1, 0, 4), (0.1, 4, 0)])
def test_invalid_settings_are_refused(arguments):
    with pytest.raises(ValueError, match='step_size|num_steps|num_samples'):
        MLMCMC(*arguments)
