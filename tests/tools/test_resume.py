"""A training that was killed and resumed ends where it would have ended.

The processes are killed by SIGKILL, at an iteration between two checkpoints.
"""

import os
import signal

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmdet_ebm.engine import latest_checkpoint

from ..helpers import run_tool
from ..processes import run_forked
from ..small_models import build
from .test_pipeline import shrunk_config

ENERGY = 'digits/faster-rcnn_r18-half_nce-plus_digits.py'


@HOOKS.register_module()
class Kill(Hook):
    """Kills its process before a certain iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def train(*arguments):
    run_tool(pytest.MonkeyPatch(), 'train', *arguments)


@pytest.fixture
def config(digits, tmp_path, monkeypatch):
    """Everything random: order, augmentation, noise; and what has a state."""
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    cfg = Config.fromfile(
        shrunk_config('digits/faster-rcnn_r18-half_digits.py', tmp_path)
    )
    torch.save(
        dict(state_dict=build(cfg.model).state_dict()), tmp_path / 'plain.pth'
    )
    cfg = Config.fromfile(shrunk_config(ENERGY, tmp_path))
    cfg.load_from = str(tmp_path / 'plain.pth')
    cfg.train_dataloader.batch_size = 4  # of 16 images
    cfg.train_dataloader.dataset.pipeline.insert(
        -1, dict(type='RandomResize', scale=(160, 160), ratio_range=(0.5, 1.0))
    )
    cfg.train_cfg.val_interval = 100
    cfg.custom_hooks = [
        dict(type='EMAHook', momentum=0.1),
        dict(type='Kill', iteration=-1),
    ]
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=3, max_keep_ckpts=1
    )
    return cfg


def by_epoch(cfg):
    cfg.train_cfg.max_epochs = 3
    # Three batches for a step, as many as from checkpoint to checkpoint.
    cfg.optim_wrapper.accumulative_counts = 3
    return 'EpochBasedTrainLoop'


def by_iteration(cfg):
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=12, val_interval=100
    )
    cfg.log_processor = dict(by_epoch=False)
    cfg.train_dataloader.update(
        num_workers=2,
        persistent_workers=True,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        batch_sampler=None,
    )
    # No seed: the checkpoint's is the one that counts.
    cfg.randomness = dict(seed=None)
    return 'IterBasedTrainLoop'


@pytest.mark.parametrize('loop', [by_epoch, by_iteration])
def test_killed_and_resumed_equals_uninterrupted(config, tmp_path, loop):
    assert loop(config) == config.train_cfg.type
    path, whole, parts = (
        tmp_path / name for name in ('energy.py', 'whole', 'parts')
    )
    config.dump(path)
    # The whole training starts from the seed that the other one drew.
    killed = run_forked(
        train,
        path,
        '--work-dir',
        parts,
        '--cfg-options',
        'custom_hooks.1.iteration=10',
    )
    assert killed == [-signal.SIGKILL]
    cut = latest_checkpoint(parts)
    assert cut.endswith('iter_9.pth') and len(list(parts.glob('*.pth'))) == 1
    start = torch.load(cut)
    seed = start['meta']['seed']
    assert run_forked(train, path, '--work-dir', parts, '--resume') == [0]
    assert run_forked(
        train,
        path,
        '--work-dir',
        whole,
        '--cfg-options',
        f'randomness.seed={seed}',
    ) == [0]
    ends = [torch.load(latest_checkpoint(folder)) for folder in (parts, whole)]
    assert [end['meta']['iter'] for end in ends] == [12, 12]
    key = 'energy_model.head.shared_fcs.0.weight'
    for part in ('state_dict', 'ema_state_dict'):
        resumed, expected = (end[part] for end in ends)
        assert list(resumed) == list(expected)
        for name in expected:
            assert torch.equal(resumed[name], expected[name]), name
    trained = ends[0]['state_dict'][key]
    assert not torch.equal(start['state_dict'][key], trained)
    assert not torch.equal(ends[0]['ema_state_dict']['module.' + key], trained)
