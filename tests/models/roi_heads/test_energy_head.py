"""The energy head: class columns, layout, initialisation, errors."""

import pytest
import torch

from mmdet_ebm.models import EnergyHead
from mmdet_ebm.models.roi_heads.energy_head import PooledLinear


def head(**kwargs):
    options = dict(
        num_classes=3, in_channels=4, roi_feat_size=2, fc_out_channels=8
    )
    built = EnergyHead(**{**options, **kwargs})
    built.init_weights()
    return built


def test_each_box_reads_its_class():
    energy = head()
    energy.fc_logdensity.weight.data.normal_()
    pooled = torch.randn(5, 4, 2, 2)
    columns = torch.stack(
        [energy(pooled, torch.full((5,), c)) for c in range(3)], 1
    )
    labels = torch.tensor([2, 0, 1, 1, 2])
    torch.testing.assert_close(
        energy(pooled, labels), columns[torch.arange(5), labels]
    )
    assert not torch.allclose(columns[:, 0], columns[:, 1])


def test_loads_an_ordinary_linear_layers_weights():
    """Of features flattened as C, P, Q, as in other heads."""
    ordinary = torch.nn.Linear(4 * 3 * 2, 8)
    layer = PooledLinear((4, 3, 2), 8)
    layer.load_state_dict(ordinary.state_dict())
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    pooled = torch.randn(5, 4, 3, 2)
    torch.testing.assert_close(layer(pooled), ordinary(pooled.flatten(1)))
    other = PooledLinear((4, 3, 2), 8)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(pooled), other(pooled))


def test_equals_plain_layers_on_the_usual_flattening():
    energy = head(class_agnostic=True)
    pooled = torch.randn(5, 4, 2, 2)
    first, *rest = energy.shared_fcs
    hidden = torch.nn.functional.linear(
        pooled.flatten(1), first.weight.flatten(1), first.bias
    )
    expected = energy.fc_logdensity(torch.nn.Sequential(*rest)(hidden))[:, 0]
    labels = torch.zeros(5, dtype=torch.long)
    torch.testing.assert_close(energy(pooled, labels), expected)
    torch.testing.assert_close(
        energy(pooled.contiguous(memory_format=torch.channels_last), labels),
        expected,
    )


def test_published_initialisation():
    energy = head(num_classes=200, fc_out_channels=500)
    first = energy.shared_fcs[0]
    bound = (3 / first.in_features) ** 0.5  # uniform fan-in, a = 1
    assert first.weight.abs().max() <= bound
    assert first.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert energy.fc_logdensity.weight.std().item() == pytest.approx(
        1e-3, rel=0.05
    )
    assert (energy.fc_logdensity.bias == 0).all()


def test_activation_is_configurable():
    energy = head(act_cfg=dict(type='SiLU'))
    kinds = {type(layer).__name__ for layer in energy.shared_fcs}
    assert kinds == {'PooledLinear', 'Linear', 'SiLU'}


def test_reduced_channels_are_a_linear_map_before_the_first_layer():
    """As if maps of fewer channels had been pooled."""
    energy = head(reduced_channels=3, class_agnostic=True)
    pooled, labels = torch.randn(5, 4, 2, 2), torch.zeros(5).long()
    reduce = energy.reduction
    fewer = (
        torch.einsum('rcpq,dc->rdpq', pooled, reduce.weight)
        + reduce.bias[:, None, None]
    )
    light = head(in_channels=3, class_agnostic=True)
    light.load_state_dict(
        {
            name: value
            for name, value in energy.state_dict().items()
            if not name.startswith('reduction.')
        }
    )
    torch.testing.assert_close(energy(pooled, labels), light(fewer, labels))
    bound = (3 / 4) ** 0.5  # initialised like the other layers
    assert bound / 2 < reduce.weight.abs().max() <= bound


@pytest.mark.parametrize('reduced_channels', [0, 5])
def test_reduced_channels_must_be_fewer(reduced_channels):
    with pytest.raises(ValueError, match='between 1 and the 4 in_channels'):
        head(reduced_channels=reduced_channels)


def test_no_boxes_keep_the_graph():
    energy = head()
    energy(torch.zeros(0, 4, 2, 2), torch.zeros(0).long()).sum().backward()
    assert all((p.grad == 0).all() for p in energy.parameters())


def test_output_is_float32_under_autocast():
    with torch.autocast('cpu', torch.bfloat16):
        out = head()(torch.randn(2, 4, 2, 2), torch.tensor([0, 1]))
    assert out.dtype == torch.float32


def test_wrong_shapes_and_numbers_are_named():
    with pytest.raises(ValueError, match='in_channels'):
        head()(torch.randn(2, 5, 2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match='num_classes'):
        head(num_classes=0)
