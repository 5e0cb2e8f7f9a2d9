"""Loss components: mmdet's weighting and reduction around the methods."""

import pytest
import torch
from mmdet.registry import MODELS

from mmdet_ebm.core import NCE, LossInfo
from mmdet_ebm.models import EnergyLoss, NCELoss, NCEPlusLoss


def logdensity(y):
    return -y.square().sum(-1)


def loss_of(loss, **kwargs):
    torch.manual_seed(7)
    return loss(logdensity, torch.zeros(4, 4), **kwargs)[0]


WIDE, NARROW = (0.075, 0.15, 0.3), (0.0375, 0.075, 0.15)
PUBLISHED = dict(
    NCELoss=dict(sigmas=WIDE, num_samples=127),
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
    each, info = loss_fn(
        lambda y: scale * logdensity(y),
        torch.zeros(4, 4),
        weight=weight,
        reduction_override='none',
    )
    torch.manual_seed(7)
    loss, _ = loss_fn(
        lambda y: scale * logdensity(y),
        torch.zeros(4, 4),
        weight=weight,
        avg_factor=3.0,
    )
    torch.testing.assert_close(loss, each.sum() / 3)
    assert each[1] == 0
    assert info.truth.shape == (4,) and len(info.noise) == 4
    assert not info.truth.requires_grad and not info.noise.requires_grad
    loss.backward()
    assert scale.grad != 0
    empty, _ = loss_fn(lambda y: scale * logdensity(y), torch.zeros(0, 4))
    assert empty == 0 and empty.requires_grad


def test_reductions():
    torch.manual_seed(7)
    each, _ = NCE(WIDE, 127)(logdensity, torch.zeros(4, 4))
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
    loss, _ = NCEPlusLoss()(
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


def test_settings_reach_the_method():
    method = NCEPlusLoss(sigmas=[0.2], num_samples=3, beta=0.5).method
    assert method.num_samples == 3 and method.beta == 0.5
    assert method.noise.sigmas.item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    'wrong, message',
    [
        (
            dict(type='NCELoss', num_sample=3, beta=0.1),
            'NCELoss has no setting beta, num_sample; its settings are '
            'sigmas, num_samples, reduction, loss_weight',
        ),
        (
            dict(type='SMLoss', num_samples=3),
            'SMLoss has no setting num_samples; its settings are '
            'reduction, loss_weight',
        ),
        (dict(type='DSMLoss', sigma=-1.0), 'sigma must be positive'),
    ],
)
def test_settings_that_do_not_exist_or_fit_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(wrong)


class Distance(torch.nn.Module):
    """f at the target, to become zero."""

    def __init__(self, power=2):
        super().__init__()
        self.power = power

    def forward(self, logdensity_fn, targets):
        f = logdensity_fn(targets[:, None])
        return f[:, 0].abs() ** self.power, LossInfo(f[:, 0], f[:, 1:])


def test_a_method_of_ones_own_needs_a_name_only():
    class DistanceLoss(EnergyLoss):
        method_class = Distance
        defaults = dict(power=4)

    def minus_two(y):
        return torch.full(y.shape[:2], -2.0)

    for settings, expected in ((dict(), 16), (dict(power=1), 2)):
        loss, info = DistanceLoss(**settings)(minus_two, torch.zeros(3, 4))
        assert loss == expected and info.truth.tolist() == [-2] * 3
