"""Models are built from config and checkpoint."""

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.apis import EnergyDetInferencer

from ..helpers import assert_same_detections, random_image


def test_config_comes_from_the_checkpoint_if_it_may_be_run(
    energy_files, inferencer
):
    alone = EnergyDetInferencer(
        weights=energy_files[1],
        device='cpu',
        show_progress=False,
        run_stored_config=True,
    )
    assert_same_detections(
        alone(random_image())['predictions'][0],
        inferencer(random_image())['predictions'][0],
        atol=0,
    )


def test_a_stored_config_is_not_run_without_a_word_of_the_user(tmp_path):
    path, trace = tmp_path / 'a.pth', tmp_path / 'trace'
    torch.save(dict(meta=dict(cfg=f"open({str(trace)!r}, 'w')")), path)
    with pytest.raises(ValueError, match='run_stored_config=True'):
        EnergyDetInferencer(weights=path)
    assert not trace.exists()


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
