"""Changes to a config before a training."""

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.engine import (
    FitDensityHook,
    fit_at_the_end,
    join_processes,
    make_resumable,
    measure_noise,
)


def test_only_mmengines_own_loop_and_hook_are_replaced():
    cfg = Config(
        dict(
            train_cfg=dict(by_epoch=False, max_iters=3),
            custom_imports=dict(imports=['mine']),
        )
    )
    make_resumable(cfg)
    assert cfg.train_cfg == dict(type='ResumableIterTrainLoop', max_iters=3)
    assert cfg.default_hooks.checkpoint.type == 'AtomicCheckpointHook'
    assert cfg.custom_imports.imports == ['mine', 'mmdet_ebm.engine']
    mine = dict(
        train_cfg=dict(type='MyLoop'),
        default_hooks=dict(checkpoint=dict(type='MyHook')),
    )
    cfg = Config(dict(mine))
    make_resumable(cfg)
    assert cfg.train_cfg.type == 'MyLoop'
    assert cfg.default_hooks.checkpoint.type == 'MyHook'


@pytest.mark.parametrize(
    'name', ['FitDensityHook', 'mmdet.FitDensityHook', FitDensityHook]
)
def test_a_hook_of_the_users_is_not_added_again(name):
    mine = dict(type=name, priority=1)
    cfg = Config(dict(model=dict(energy_model={}), custom_hooks=[mine]))
    fit_at_the_end(cfg)
    assert [hook.type for hook in cfg.custom_hooks] == [name]


@pytest.mark.parametrize('name', [None, 'mmdet.MeasureNoiseHook'])
def test_noise_is_measured_by_one_hook(name):
    cfg = Config(
        dict(
            model=dict(energy_model=dict(loss=dict(sigmas='measured'))),
            custom_hooks=[dict(type=name)] if name else None,
        )
    )
    measure_noise(cfg)
    assert [h.type for h in cfg.custom_hooks] == [name or 'MeasureNoiseHook']


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_processes_that_nobody_started_are_refused(launcher, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SystemExit, match='torchrun'):
        join_processes(Config(dict(launcher=launcher)))
