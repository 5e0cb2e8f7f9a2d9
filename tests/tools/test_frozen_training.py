"""What tools/train.py changes for an energy model on a frozen detector."""

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.engine import MeasureNoiseHook

from ..helpers import run_tool
from ..small_models import build
from .test_pipeline import shrunk_config

SPREAD = torch.tensor([0.02, 0.02, 0.05, 0.05])
KEY = 'energy_model.loss_energy.spread'


@pytest.fixture
def train(digits, tmp_path, monkeypatch):
    """Trains with cropped images and measured noise; gives log and state."""
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    plain = Config.fromfile(
        shrunk_config('digits/faster-rcnn_r18-half_digits.py', tmp_path)
    )
    weights = tmp_path / 'plain.pth'
    torch.save(dict(state_dict=build(plain.model).state_dict()), weights)
    cfg = Config.fromfile(
        shrunk_config(
            'digits/faster-rcnn_r18-half_nce-plus_digits.py', tmp_path
        )
    )
    cfg.load_from = str(weights)
    cfg.train_cfg.val_interval = 100
    cfg.model.energy_model.loss.sigmas = 'measured'
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.train_dataloader.dataset.pipeline.insert(
        2, dict(type='RandomCrop', crop_size=(0.9, 0.9), crop_type='relative')
    )
    path = tmp_path / 'energy.py'
    cfg.dump(path)
    work_dir = tmp_path / 'energy'

    def train(*arguments):
        run_tool(
            monkeypatch, 'train', path, '--work-dir', work_dir, *arguments
        )
        log = max(work_dir.glob('*/*.log')).read_text()
        newest = max(
            work_dir.glob('epoch_*.pth'), key=lambda p: p.stat().st_mtime
        )
        checkpoint = torch.load(newest, weights_only=False)
        return log, checkpoint['state_dict'], checkpoint['meta']['cfg']

    return train


def test_noise_is_measured_once_and_crops_are_taken_out(train, monkeypatch):
    calls = []

    def errors(self, model, samples):
        calls.append(next(samples))  # loads an image as at test time
        return 16, SPREAD / 2 * torch.randn(500, 4).sign()

    monkeypatch.setattr(MeasureNoiseHook, '_errors', errors)
    log, state, config = train()
    torch.testing.assert_close(state[KEY], SPREAD / 2)
    assert len(calls) == 1 and calls[0][0]['inputs'].dim() == 3
    assert 'spread 0.0100 (centre) and 0.0250 (size)' in log
    assert 'Taken out of the training pipeline: RandomCrop.' in log
    assert "type='RandomCrop'" not in config

    # Trained further, it keeps its noise.
    _, state, _ = train('--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert len(calls) == 1
    torch.testing.assert_close(state[KEY], SPREAD / 2)


def test_crops_can_be_kept(train):
    log, state, config = train(
        '--cfg-options',
        'keep_crops=True',
        'model.energy_model.loss.sigmas=[0.1]',
    )
    assert 'Taken out' not in log and "type='RandomCrop'" in config
    assert KEY not in state
