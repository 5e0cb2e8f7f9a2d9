"""Which checkpoint is resumed from, and how checkpoints are written."""

import os

import pytest
import torch

from mmdet_ebm.engine import latest_checkpoint
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
    """Without a record that names a file, it is the newest complete one."""
    first, second, third = (checkpoint(tmp_path, i) for i in (5, 20, 100))
    content = third.read_bytes()
    third.write_bytes(content[: len(content) // 2])
    if record is not None:
        (tmp_path / 'last_checkpoint').write_text(record)
    assert latest_checkpoint(tmp_path) == str(second)
    (tmp_path / 'last_checkpoint').write_text(str(third))
    assert latest_checkpoint(tmp_path) == str(second)


@pytest.mark.parametrize('damage', ['flipped bits', 'other content', 'zeros'])
def test_a_damaged_checkpoint_gives_way_to_an_older_one(tmp_path, damage):
    """As after a fault of the disk; the newest one still is a zip file."""
    first, second = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    if damage == 'other content':
        torch.save([1], second)
    else:
        content = second.read_bytes()
        spoilt = content.replace(b'iteration', b'iterAtion')
        assert spoilt != content
        second.write_bytes(
            spoilt if damage == 'flipped bits' else bytes(len(content))
        )
    for record in (str(second), '\0' * 20, '\udcff'):
        record = record.encode('utf-8', 'surrogateescape')
        (tmp_path / 'last_checkpoint').write_bytes(record)
        assert latest_checkpoint(tmp_path) == str(first)


def test_a_folder_of_damaged_checkpoints_is_no_new_training(tmp_path):
    """It would overwrite what might be saved."""
    for i in (5, 10):
        checkpoint(tmp_path, i).write_bytes(b'no checkpoint')
        os.utime(tmp_path / f'iter_{i}.pth', (i, i))
    for record in (None, 'gone.pth'):
        if record:
            (tmp_path / 'last_checkpoint').write_text(record)
        with pytest.raises(ValueError, match='none of the 2 .*iter_10.pth'):
            latest_checkpoint(tmp_path)


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'iter_1.pth'
    backend = AtomicLocalBackend()
    backend.put(b'old', path)
    with pytest.raises(TypeError):
        backend.put('not bytes', path)  # fails after the file was opened
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_the_rest_of_a_killed_write_does_not_prevent_the_next(tmp_path):
    path = tmp_path / 'iter_1.pth'
    backend = AtomicLocalBackend()
    (tmp_path / 'iter_1.pth.part').write_bytes(b'ne')
    backend.put(b'new', path)
    assert path.read_bytes() == b'new' and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_replaces_another(
    tmp_path, monkeypatch
):
    """After a power cut, a renamed file without its content has neither."""
    calls = []
    for name in ('fsync', 'rename', 'replace', 'link'):
        real = getattr(os, name)

        def noted(*arguments, name=name, real=real):
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, noted)
    AtomicLocalBackend().put(b'new', tmp_path / 'iter_1.pth')
    assert calls[0] == 'fsync' and len(calls) > 1
