"""ML-MCMC: what it evaluates and what it differentiates."""

import pytest
import torch

from mmdet_ebm.core import MLMCMC


def test_ml_mcmc_evaluates_all_chains_together_and_the_ends_once():
    shapes = []

    def logdensity(y):
        shapes.append((tuple(y.shape), y.requires_grad))
        return -y.square().sum(-1)

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

    losses, _ = MLMCMC(0.3, 5, 16)(logdensity, targets)
    losses.sum().backward()
    squares = seen[-1].square().sum(-1)
    expected = -(squares[:, 1:].mean(1) - squares[:, 0]).sum()
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize('arguments', [(0.0, 4, 4), (0.1, 0, 4), (0.1, 4, 0)])
def test_invalid_settings_are_refused(arguments):
    with pytest.raises(ValueError, match='step_size|num_steps|num_samples'):
        MLMCMC(*arguments)
