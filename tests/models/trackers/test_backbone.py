"""The short MobileNetV2 gives the maps and takes the weights of the long."""

import pytest
import torch
from mmdet.models.backbones import MobileNetV2

from mmdet_ebm.models import MobileNetV2Stem

INPUTS = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def in_torchvision_names(state):
    """The same tensors in the same order under other names."""
    return {f'features.{i}.x': value for i, value in enumerate(state.values())}


@pytest.mark.parametrize('rename', [dict, in_torchvision_names])
def test_it_gives_the_maps_of_the_whole_network(rename):
    whole = MobileNetV2(out_indices=(1, 2, 4))
    whole.init_weights()
    whole.eval()
    short = MobileNetV2Stem(out_indices=(1, 2, 4))
    short.load_state_dict(rename(whole.state_dict()), strict=False)
    short.eval()
    with torch.no_grad():
        for ours, theirs in zip(short(INPUTS), whole(INPUTS)):
            torch.testing.assert_close(ours, theirs)
    assert not hasattr(short, 'layer6')


def test_frozen_weights_and_statistics_never_change():
    model = MobileNetV2Stem()
    model.train()
    before = [value.clone() for value in model.state_dict().values()]
    assert not any(map_.requires_grad for map_ in model(INPUTS))
    after = model.state_dict().values()
    assert all((a == b).all() for a, b in zip(before, after))
    learns = MobileNetV2Stem(frozen=False)
    assert all(p.requires_grad for p in learns.parameters())


def test_weights_of_another_width_are_refused():
    narrow = MobileNetV2(widen_factor=0.5)
    with pytest.raises(ValueError, match='MobileNetV2 of width'):
        MobileNetV2Stem().load_state_dict(
            in_torchvision_names(narrow.state_dict()), strict=False
        )
