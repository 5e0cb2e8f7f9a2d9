"""Draws from several generators: each part of a batch keeps its stream."""

import pytest
import torch

from mmdet_ebm.core import (
    DSM,
    KLDIS,
    MLIS,
    MLMCMC,
    NCE,
    NCEPlus,
    langevin_chain,
)
from mmdet_ebm.core.random import draw


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    'method',
    [
        MLIS((0.2, 1.6), 5),
        KLDIS((0.2, 1.6), 5, 0.1),
        MLMCMC(0.1, 3, 5),
        NCE((0.1, 0.8), 5),
        NCEPlus((0.1, 0.8), 5, 0.5),
        DSM(0.2, 5),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_part_of_a_batch_draws_what_it_draws_alone(method):
    targets = torch.randn(6, 2)

    def logdensity(y):
        return -y.square().sum(-1)

    together = method(logdensity, targets, [generator(1), generator(2)])
    alone = [
        method(logdensity, targets[:3], generator(1)),
        method(logdensity, targets[3:], generator(2)),
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_langevin_chains_keep_their_generators():
    start = torch.randn(4, 3, 1)
    chain = (lambda y: -y.square().sum(-1), start, 0.1, 2)
    together = langevin_chain(*chain, [generator(1), generator(2)])
    first = langevin_chain(chain[0], start[:2], 0.1, 2, generator(1))
    assert torch.equal(together[:2], first)


@pytest.mark.parametrize('generators', [[], [generator(0)] * 3])
def test_generators_that_do_not_divide_the_batch_are_refused(generators):
    with pytest.raises(ValueError, match='multiple of the number'):
        draw(torch.randn, (4, 1), generators)
