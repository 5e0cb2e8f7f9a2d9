"""Changes to a config before a training."""

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.engine import join_processes, make_resumable


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


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('launcher', ['pytorch', 'slurm'])
def test_processes_that_nobody_started_are_refused(launcher, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SystemExit, match='torchrun'):
        join_processes(Config(dict(launcher=launcher)))
