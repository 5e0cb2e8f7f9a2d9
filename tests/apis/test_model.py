"""Models are built from config and checkpoint."""

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.apis import EnergyDetInferencer

from ..helpers import assert_same_detections, random_image


def test_config_comes_from_the_checkpoint_without_one(
    energy_files, inferencer
):
    alone = EnergyDetInferencer(
        weights=energy_files[1], device='cpu', show_progress=False
    )
    assert_same_detections(
        alone(random_image())['predictions'][0],
        inferencer(random_image())['predictions'][0],
        atol=0,
    )


def test_class_names_come_from_the_config_where_weights_have_none(
    energy_files, tmp_path
):
    config, checkpoint = energy_files
    bare = torch.load(checkpoint, weights_only=True)['state_dict']
    torch.save(bare, tmp_path / 'bare.pth')
    inferencer = EnergyDetInferencer(
        config, tmp_path / 'bare.pth', device='cpu'
    )
    assert inferencer.classes == tuple(
        Config.fromfile(config).metainfo.classes
    )


def test_device_that_is_not_there_is_named(energy_files):
    for device in ('cuda:99', 'abacus'):
        with pytest.raises(ValueError, match=f'cannot compute on {device}'):
            EnergyDetInferencer(*energy_files, device=device)
