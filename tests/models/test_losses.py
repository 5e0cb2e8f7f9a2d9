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


WIDE, NARROW = (0.075, 0.15, 0.3), (0.0375, 0.075, 0.15)
PUBLISHED = dict(
    NCELoss=dict(sigmas=WIDE, num_samples=127, beta=0.0),
    NCEPlusLoss=dict(sigmas=WIDE, num_samples=127, beta=0.1),
    MLISLoss=dict(sigmas=NARROW, num_samples=128),
    KLDISLoss=dict(sigmas=NARROW, num_samples=128),
    MLMCMCLoss=dict(step_size=1e-5, num_steps=8, num_samples=128),
    SMLoss=dict(),
    DSMLoss=dict(sigma=0.075, num_samples=128),
    LocalizationConfidenceLoss=dict(min_iou=0.5, num_samples=128),
)


@pytest.mark.parametrize('name', PUBLISHED)
def test_registered_with_published_defaults(name):
    method = MODELS.build(dict(type=name)).method
    for field, value in PUBLISHED[name].items():
        if field == 'sigmas':
            torch.testing.assert_close(
                method.noise.sigmas[:, 0], torch.tensor(value)
            )
        else:
            assert getattr(method, field) == value
    if name == 'KLDISLoss':
        assert method.label.sigmas.item() == pytest.approx(0.0225)


@pytest.mark.parametrize('name', PUBLISHED)
def test_every_method_is_called_as_an_mmdet_loss(name):
    scale = torch.ones((), requires_grad=True)
    loss_fn = MODELS.build(dict(type=name, loss_weight=2.0))
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0])
    torch.manual_seed(7)
    each = loss_fn(
        lambda y: scale * logdensity(y),
        torch.zeros(4, 4),
        weight=weight,
        reduction_override='none',
    )
    torch.manual_seed(7)
    loss = loss_fn(
        lambda y: scale * logdensity(y),
        torch.zeros(4, 4),
        weight=weight,
        avg_factor=3.0,
    )
    torch.testing.assert_close(loss, each.sum() / 3)
    assert each[1] == 0
    loss.backward()
    assert scale.grad != 0
    empty = loss_fn(lambda y: scale * logdensity(y), torch.zeros(0, 4))
    assert empty == 0 and empty.requires_grad


def test_reductions():
    torch.manual_seed(7)
    each = NCE((0.075, 0.15, 0.3), 127)(logdensity, torch.zeros(4, 4))
    torch.testing.assert_close(loss_of(NCELoss(reduction='none')), each)
    torch.testing.assert_close(loss_of(NCELoss(reduction='sum')), each.sum())
    torch.testing.assert_close(loss_of(NCELoss()), each.mean())
    torch.testing.assert_close(
        loss_of(NCELoss(), reduction_override='sum'), each.sum()
    )
    torch.testing.assert_close(
        loss_of(NCELoss(loss_weight=3.0)), 3 * each.mean()
    )


def test_weights_and_avg_factor():
    each = loss_of(NCEPlusLoss(reduction='none'))
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0])
    expected = (each[0] + 2 * each[2]) / 5
    for avg_factor in (5, torch.tensor(5.0)):
        torch.testing.assert_close(
            loss_of(NCEPlusLoss(), weight=weight, avg_factor=avg_factor),
            expected,
        )


@pytest.mark.parametrize('avg_factor', [None, 1])
def test_mean_over_no_instances_is_zero_with_a_graph(avg_factor):
    scale = torch.ones((), requires_grad=True)
    loss = NCEPlusLoss()(
        lambda y: scale * logdensity(y),
        torch.zeros(0, 4),
        avg_factor=avg_factor,
    )
    loss.backward()
    assert loss == 0 and scale.grad == 0


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match='reduction'):
        NCELoss(reduction='median')
    with pytest.raises(ValueError, match='reduction'):
        loss_of(NCELoss(), reduction_override='median')
