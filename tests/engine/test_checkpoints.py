"""Which checkpoint is resumed from, and how checkpoints are written."""

import os

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.engine import join_processes, latest_checkpoint, make_resumable
from mmdet_ebm.engine.checkpoints import AtomicLocalBackend


def checkpoint(folder, iteration):
    path = folder / f'iter_{iteration}.pth'
    torch.save(dict(iteration=iteration), path)
    os.utime(path, (iteration, iteration))
    return path


def test_latest_checkpoint_is_the_recorded_one(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    first, _ = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    (tmp_path / 'last_checkpoint').write_text(str(first))
    assert latest_checkpoint(tmp_path) == str(first)


@pytest.mark.parametrize('record', ['', 'gone.pth', None])
def test_a_killed_writer_leaves_an_older_checkpoint(tmp_path, record):
    """Without a record that leads to a file: the newest that is whole."""
    first, second, third = (checkpoint(tmp_path, i) for i in (5, 20, 100))
    content = third.read_bytes()
    third.write_bytes(content[: len(content) // 2])
    if record is not None:
        (tmp_path / 'last_checkpoint').write_text(record)
    assert latest_checkpoint(tmp_path) == str(second)
    (tmp_path / 'last_checkpoint').write_text(str(third))
    assert latest_checkpoint(tmp_path) == str(second)


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'iter_1.pth'
    backend = AtomicLocalBackend()
    backend.put(b'old', path)

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1


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
