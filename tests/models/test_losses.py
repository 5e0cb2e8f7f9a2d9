"""Loss components: mmdet's weighting and reduction around the methods."""

import pytest
import torch
from mmdet.registry import MODELS

from mmdet_ebm.core import NCE
from mmdet_ebm.models import NCELoss, NCEPlusLoss


def logdensity(y):
    return -y.square().sum(-1)


def loss_of(loss, **kwargs):
    torch.manual_seed(7)
    return loss(logdensity, torch.zeros(4, 4), **kwargs)


@pytest.mark.parametrize('name', ['NCELoss', 'NCEPlusLoss'])
def test_registered_with_published_defaults(name):
    loss = MODELS.build(dict(type=name))
    assert loss.method.num_samples == 127
    torch.testing.assert_close(loss.method.noise.sigmas[:, 0],
                               torch.tensor([0.075, 0.15, 0.3]))
    assert loss.method.beta == {'NCELoss': 0.0, 'NCEPlusLoss': 0.1}[name]


def test_reductions():
    torch.manual_seed(7)
    each = NCE((0.075, 0.15, 0.3), 127)(logdensity, torch.zeros(4, 4))
    torch.testing.assert_close(loss_of(NCELoss(reduction='none')), each)
    torch.testing.assert_close(loss_of(NCELoss(reduction='sum')), each.sum())
    torch.testing.assert_close(loss_of(NCELoss()), each.mean())
    torch.testing.assert_close(
        loss_of(NCELoss(), reduction_override='sum'), each.sum())
    torch.testing.assert_close(loss_of(NCELoss(loss_weight=3.0)),
                               3 * each.mean())


def test_weights_and_avg_factor():
    each = loss_of(NCEPlusLoss(reduction='none'))
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0])
    expected = (each[0] + 2 * each[2]) / 5
    for avg_factor in (5, torch.tensor(5.0)):
        torch.testing.assert_close(
            loss_of(NCEPlusLoss(), weight=weight, avg_factor=avg_factor),
            expected)


@pytest.mark.parametrize('avg_factor', [None, 1])
def test_mean_over_no_instances_is_zero_with_a_graph(avg_factor):
    scale = torch.ones((), requires_grad=True)
    loss = NCEPlusLoss()(lambda y: scale * logdensity(y), torch.zeros(0, 4),
                         avg_factor=avg_factor)
    loss.backward()
    assert loss == 0 and scale.grad == 0


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match='reduction'):
        NCELoss(reduction='median')
    with pytest.raises(ValueError, match='reduction'):
        loss_of(NCELoss(), reduction_override='median')
