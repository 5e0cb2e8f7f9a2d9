"""The density is fitted when a training ends, before it is stored."""

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.engine import (
    ResumableIterTrainLoop,
    fit_density_hook,
    held_out,
    latest_checkpoint,
)

from ..helpers import run_tool
from ..small_models import build
from .test_pipeline import shrunk_config

ENERGY = 'digits/faster-rcnn_r18-half_nce-plus_digits.py'
NUMBERS = 'energy_model.density._extra_state'
LAYER = 'energy_model.head.fc_logdensity.weight'


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


@pytest.fixture
def train(digits, tmp_path, monkeypatch):
    """Train for four steps with a change of the config.

    Gives for each fit whether the model was in training mode, the images, and
    a layer's weights; and what the last checkpoint holds.
    """
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    seen = []

    def fit(model, batches):
        images = [s.img_id for each in batches for s in each['data_samples']]
        weight = model.state_dict()[LAYER].clone()
        seen.append((model.training, images, weight))
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

    def run(change):
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
        return seen, last

    return run


@pytest.mark.parametrize(
    'change', [lambda cfg: None, every_two_iterations, without_epochs]
)
def test_the_last_checkpoint_holds_the_fit(change, train):
    ((training, images, weight),), last = train(change)
    stored = last['state_dict'][NUMBERS]
    assert stored[0] == 7.5 and stored[-1] == 1
    assert not training and images
    # The weights that were fitted, and not those of the step before.
    assert torch.equal(weight, last['state_dict'][LAYER])


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights_are_fitted_and_stored(update_buffers, train):
    def change(cfg):
        cfg.custom_hooks = [
            dict(
                type='EMAHook',
                momentum=0.5,
                update_buffers=update_buffers,
                priority=49,
            )
        ]

    ((_, _, weight),), last = train(change)
    stored = last['state_dict'][NUMBERS]
    assert stored[0] == 7.5 and stored[-1] == 1
    assert torch.equal(weight, last['state_dict'][LAYER])
    trained = last['ema_state_dict'][f'module.{LAYER}']
    assert not torch.equal(weight, trained)


def without_val(cfg):
    without_epochs(cfg)
    cfg.train_cfg.pop('val_interval')
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None


@pytest.mark.parametrize('fewest', [10, 17])
def test_without_a_val_split_training_images_are_kept_aside(
    fewest, train, monkeypatch, capsys
):
    monkeypatch.setattr(held_out, '_FEWEST', fewest)
    monkeypatch.setattr(held_out, '_PART', 5)
    loaded = set()
    step = ResumableIterTrainLoop.run_iter

    def run_iter(self, batch):
        loaded.update(sample.img_id for sample in batch['data_samples'])
        step(self, batch)

    monkeypatch.setattr(ResumableIterTrainLoop, 'run_iter', run_iter)
    seen, last = train(without_val)
    if fewest > 16:
        assert not seen and last['state_dict'][NUMBERS][-1] == 0
        assert 'too few' in capsys.readouterr().out
        return
    ((_, images, _),) = seen
    assert len(images) == 3 and not loaded & set(images)
    assert len(loaded) == 13
    assert '3 of 16 training images are kept aside' in capsys.readouterr().out
