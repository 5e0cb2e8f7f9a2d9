"""Which checkpoints fit which models."""

import math
from dataclasses import replace

import pytest
import torch
from mmdet.models import DetTTAModel
from mmengine.config import ConfigDict

from mmdet_ebm.apis.checks import (
    holds_energy_model,
    number_of_classes,
    require_resumable,
    require_weights,
    without_energy_weights,
)

from ..small_models import bccd_cfg, build, energy_model_cfg


@pytest.fixture(scope='module')
def plain_cfg():
    return bccd_cfg()


def wrapped(plain_cfg, **changes):
    """Any detector with an energy model behind it."""
    return build(
        ConfigDict(
            type='EnergyDetector',
            detector=plain_cfg,
            energy_model=dict(
                head=dict(fc_out_channels=16),
                loss=dict(type='NCEPlusLoss'),
            ),
            **changes,
        )
    )


def save(model, path, prefix=''):
    torch.save(
        {prefix + key: value for key, value in model.state_dict().items()},
        path,
    )
    return path


def test_plain_checkpoint_fits_every_way_to_add_an_energy_model(
    plain_cfg, tmp_path
):
    plain = build(plain_cfg)
    for prefix in ('', 'module.'):
        file = save(plain, tmp_path / 'plain.pth', prefix)
        require_weights(plain, file)
        for model in (build(energy_model_cfg()), wrapped(plain_cfg)):
            require_weights(model, file, energy='optional')
            with pytest.raises(ValueError, match='no weights of an energy'):
                require_weights(model, file)


def test_what_is_never_asked_may_lack(tmp_path):
    cfg = energy_model_cfg()
    cfg.energy_model.density = 'fitted'
    model = build(cfg)
    file = tmp_path / 'fitted.pth'
    for temperature in (math.inf, 3.0):
        model.energy_model.density.set_numbers(temperature=temperature)
        state = without_energy_weights(model.state_dict())
        assert not holds_energy_model(dict(state_dict=state))
        torch.save(state, file)
        new = build(cfg)
        if math.isinf(temperature):
            require_weights(new, file, energy='if asked')
            assert math.isinf(new.energy_model.density.temperature)
            with pytest.raises(ValueError, match='no weights of an energy'):
                require_weights(new, file)
            new.refinement = replace(new.refinement, energy_nms=True)
        with pytest.raises(ValueError, match='no weights of an energy'):
            require_weights(new, file, energy='if asked')


def test_energy_models_are_found_under_all_their_names():
    weight = torch.zeros(1)
    for name in ('energy_model', 'module.energy_model', 'refiner'):
        assert holds_energy_model({f'{name}.head.fc.weight': weight})
    assert not holds_energy_model({'backbone.conv1.weight': weight})


def test_advice_names_the_switches_of_the_model(plain_cfg, tmp_path):
    file = save(build(plain_cfg), tmp_path / 'plain.pth')
    with pytest.raises(ValueError, match=r'model.refinement.ascent=False\)'):
        require_weights(wrapped(plain_cfg), file)
    off = dict(energy_nms=False, ascent=False)
    require_weights(wrapped(plain_cfg, refinement=off), file)
    with pytest.raises(ValueError, match='model.refinement.uncertainty=False'):
        require_weights(
            wrapped(plain_cfg, refinement=dict(off, uncertainty=True)), file
        )


def test_weights_must_be_there_and_of_the_same_shape(plain_cfg, tmp_path):
    model = build(energy_model_cfg())
    file = save(model, tmp_path / 'energy.pth')
    require_weights(model, file)
    require_weights(DetTTAModel(module=model), file)
    state = torch.load(file)
    state.pop('detector.backbone.conv1.weight')
    torch.save(state, file)
    with pytest.raises(ValueError, match='backbone.conv1.weight is not in'):
        require_weights(model, file, energy='optional')
    state = model.state_dict()
    state['energy_model.head.fc_logdensity.bias'] = torch.zeros(9)
    torch.save(state, file)
    with pytest.raises(
        ValueError,
        match=r'shape \(9\) in the checkpoint and '
        r'\(3\) by the config',
    ):
        require_weights(model, file)
    # It is trained anew.
    require_weights(model, file, energy='optional')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_of_a_diverged_training_are_refused(tmp_path, value):
    model = build(energy_model_cfg())
    state = model.state_dict()
    key = 'energy_model.head.fc_logdensity.bias'
    state[key] = torch.full_like(state[key], value)
    torch.save(state, tmp_path / 'energy.pth')
    with pytest.raises(ValueError, match=f'NaN or infinite.* {key}'):
        require_weights(model, tmp_path / 'energy.pth')


def test_classes_are_counted_in_the_box_head(plain_cfg):
    for model in (
        build(plain_cfg),
        build(energy_model_cfg()),
        wrapped(plain_cfg),
    ):
        assert number_of_classes(model) == 3


def test_models_that_read_class_names_take_any_number(plain_cfg):
    model = build(plain_cfg)
    model.language_model = torch.nn.Identity()
    assert number_of_classes(model) is None


@pytest.mark.parametrize(
    'value',
    [
        5,
        None,
        [1.0],
        torch.ones(1).to_sparse(),
        torch.ones(64, 3, 7, 7, device='meta'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_that_are_none_are_refused(plain_cfg, tmp_path, value):
    model = build(plain_cfg)
    state = model.state_dict()
    state['backbone.conv1.weight'] = value
    torch.save(state, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='is not of the model of this'):
        require_weights(model, tmp_path / 'a.pth')


def test_only_a_training_can_be_resumed(tmp_path):
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    meta = dict(epoch=1, iter=8)
    for content, lacking in (
        (dict(w=torch.ones(1)), 'meta.epoch, meta.iter, message_hub.log_'),
        (dict(meta=meta), 'message_hub.log_scalars'),
        (dict(meta=dict(meta, iter='8'), message_hub=hub), 'meta.iter'),
        (dict(meta=meta, message_hub=dict(hub, resumed_keys=1)), 'resumed_'),
    ):
        torch.save(content, tmp_path / 'a.pth')
        with pytest.raises(ValueError, match=f'no {lacking}|hub.{lacking}'):
            require_resumable(tmp_path / 'a.pth')
    torch.save(dict(meta=meta, message_hub=hub), tmp_path / 'a.pth')
    require_resumable(tmp_path / 'a.pth')
