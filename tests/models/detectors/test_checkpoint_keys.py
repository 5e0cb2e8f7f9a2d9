"""Checkpoints of plain detectors and of version 0.1 load as they are."""

import pytest
import torch
from mmengine.runner import load_checkpoint

from mmdet_ebm.models.detectors.checkpoint_keys import rename_old_keys

from ...small_models import bccd_cfg, build, energy_model_cfg

# The energy model's names in version 0.1, behind 'refiner.'.
OLD_NAMES = [
    'head.shared_fcs.0.weight',
    'head.shared_fcs.0.bias',
    'head.shared_fcs.2.weight',
    'head.shared_fcs.2.bias',
    'head.fc_logdensity.weight',
    'head.fc_logdensity.bias',
]
# Where the detector and the energy model lay in version 0.1's classes.
OLD_FORMS = {
    'EnergyDetector': ('detector.', 'refiner.'),
    'EnergyTwoStageDetector': ('', 'roi_head.refiner.'),
}


@pytest.fixture
def model():
    return build(energy_model_cfg())


@pytest.fixture
def plain():
    return build(bccd_cfg())


@pytest.fixture(params=OLD_FORMS)
def old_state(request, plain):
    """A state of version 0.1, and the energy model's part of it by name."""
    detector, energy_model = OLD_FORMS[request.param]
    shapes = build(energy_model_cfg()).energy_model.state_dict()
    learned = {name: torch.randn_like(shapes[name]) for name in OLD_NAMES}
    state = {detector + k: v for k, v in plain.state_dict().items()}
    state.update({energy_model + k: v for k, v in learned.items()})
    return state, learned


def assert_has(model, plain, learned=()):
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(state['detector.' + name], value)
    for name in learned:
        assert torch.equal(state['energy_model.' + name], learned[name])


def test_version_0_1_loads_strictly(model, plain, old_state):
    state, learned = old_state
    model.load_state_dict(state, strict=True)
    assert_has(model, plain, learned)


@pytest.mark.parametrize('prefix', ['module.', 'a.b.'])
def test_version_0_1_loads_strictly_inside_another_module(
    model, plain, old_state, prefix
):
    """As in moving averages of weights and distributed training."""
    state, learned = old_state
    outer = torch.nn.Module()
    parent = outer
    *path, last = prefix.rstrip('.').split('.')
    for name in path:
        parent.add_module(name, torch.nn.Module())
        parent = getattr(parent, name)
    parent.add_module(last, model)
    outer.load_state_dict(
        {prefix + name: value for name, value in state.items()}, strict=True
    )
    assert_has(model, plain, learned)


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_a_file_of_version_0_1_loads(
    model, plain, old_state, prefix, tmp_path
):
    """mmengine walks through modules in its own way."""
    state, learned = old_state
    state = {prefix + name: value for name, value in state.items()}
    torch.save(dict(state_dict=state), tmp_path / 'old.pth')
    load_checkpoint(model, str(tmp_path / 'old.pth'), strict=True)
    assert_has(model, plain, learned)


def test_a_plain_detectors_checkpoint_lacks_the_energy_model_alone(
    model, plain, tmp_path
):
    missing, unexpected = model.load_state_dict(
        plain.state_dict(), strict=False
    )
    assert not unexpected
    assert missing == ['energy_model.' + name for name in OLD_NAMES]
    assert_has(model, plain)

    again = build(energy_model_cfg())
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    load_checkpoint(again, str(tmp_path / 'plain.pth'))
    assert_has(again, plain)


def test_its_own_checkpoint_loads_strictly(model):
    again = build(energy_model_cfg())
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    again.load_state_dict(model.state_dict(), strict=True)
    assert_has(again, model.detector, model.energy_model.state_dict())


def test_a_checkpoint_of_the_energy_model_alone_changes_nothing_else(
    model, plain
):
    model.load_state_dict(plain.state_dict(), strict=False)
    state = {
        'energy_model.' + name: torch.randn_like(value)
        for name, value in model.energy_model.state_dict().items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith('detector.') for name in missing)
    assert_has(model, plain)


def test_names_of_others_stay():
    """Only what lies behind the prefix is the detector's."""
    state = {
        'student.backbone.weight': 1,
        'student.roi_head.refiner.head.weight': 2,
        'teacher.backbone.weight': 3,
        'steps': 4,
    }
    rename_old_keys(state, 'student.')
    assert state == {
        'student.detector.backbone.weight': 1,
        'student.energy_model.head.weight': 2,
        'teacher.backbone.weight': 3,
        'steps': 4,
    }


def test_renaming_again_changes_nothing():
    state = {'backbone.weight': 1, 'roi_head.refiner.head.weight': 2}
    rename_old_keys(state)
    once = dict(state)
    rename_old_keys(state)
    assert state == once
