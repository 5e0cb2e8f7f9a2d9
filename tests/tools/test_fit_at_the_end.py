"""The density is fitted when a training ends, before it is stored."""

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.engine import fit_density_hook, latest_checkpoint

from ..helpers import run_tool
from ..small_models import build
from .test_pipeline import shrunk_config

ENERGY = 'digits/faster-rcnn_r18-half_nce-plus_digits.py'


def every_two_iterations(cfg):
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=2, save_last=True
    )


def without_epochs(cfg):
    every_two_iterations(cfg)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=4, val_interval=100
    )
    cfg.log_processor = dict(by_epoch=False)


@pytest.mark.parametrize(
    'change', [lambda cfg: None, every_two_iterations, without_epochs]
)
def test_the_last_checkpoint_holds_the_fit(
    change, digits, tmp_path, monkeypatch
):
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    seen = []

    def fit(model, batches):
        seen.append((model.training, len(list(batches))))
        model.energy_model.density.set_numbers(temperature=7.5)
        model.energy_model.density.fitted = True
        return 'it was fitted'

    monkeypatch.setattr(fit_density_hook, 'fit_model', fit)
    cfg = Config.fromfile(
        shrunk_config('digits/faster-rcnn_r18-half_digits.py', tmp_path)
    )
    torch.save(
        dict(state_dict=build(cfg.model).state_dict()), tmp_path / 'plain.pth'
    )
    cfg = Config.fromfile(shrunk_config(ENERGY, tmp_path))
    cfg.load_from = str(tmp_path / 'plain.pth')
    cfg.model.energy_model.density = 'fitted'
    cfg.train_dataloader.batch_size = 4  # of 16 images
    change(cfg)
    cfg.dump(tmp_path / 'energy.py')
    run_tool(
        monkeypatch,
        'train',
        tmp_path / 'energy.py',
        '--work-dir',
        tmp_path / 'work',
    )
    last = torch.load(latest_checkpoint(tmp_path / 'work'))
    assert last['meta']['iter'] == 4
    numbers = last['state_dict']['energy_model.density._extra_state']
    assert numbers[0] == 7.5 and numbers[-1] == 1
    ((training, batches),) = seen
    assert not training and batches > 0
