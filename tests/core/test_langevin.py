"""The Langevin chain as a sampler.

On f = -a y^2 / 2 the chain is linear, y <- c y + lambda e with
c = 1 - lambda^2 a / 2: after L steps from y0 its mean is c^L y0 and its
variance lambda^2 (1 - c^2L) / (1 - c^2), which tends to
1 / (a (1 - lambda^2 a / 4)).
"""

import math

import pytest
import torch

from mmdet_ebm.core import langevin_chain

from .conftest import generator

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
        generator(num_steps),
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


def test_langevin_chains_keep_their_generators():
    start = torch.randn(4, 3, 1)
    chain = (lambda y: -y.square().sum(-1), start, 0.1, 2)
    together = langevin_chain(*chain, [generator(1), generator(2)])
    first = langevin_chain(chain[0], start[:2], 0.1, 2, generator(1))
    assert torch.equal(together[:2], first)
