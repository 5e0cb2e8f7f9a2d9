"""Trainings that are not run twice."""

import subprocess
import sys

import pytest

from mmdet_ebm.engine.experiments import run_tool, train_once

# Writes a checkpoint, or stops before it if told to.
TOOL = """
import sys
from pathlib import Path

_, config, _, work_dir, *options = sys.argv
log = Path(work_dir, 'log')
log.write_text((log.read_text() if log.exists() else '') + 'run\\n')
Path(work_dir, 'options').write_text(' '.join(options))
if Path(config).with_name('interrupt').exists():
    raise SystemExit(1)
Path(work_dir, 'last_checkpoint').write_text('epoch_3.pth')
"""


@pytest.fixture
def training(tmp_path):
    """A training with changes; gives its checkpoint."""
    (tmp_path / 'tool.py').write_text(TOOL)
    (tmp_path / 'config.py').write_text('lr = 1')

    def train(seed=0, **changes):
        return train_once(
            tmp_path / 'tool.py',
            tmp_path / 'config.py',
            tmp_path / 'work',
            seed,
            **changes,
        )

    return train


def runs(tmp_path):
    return (tmp_path / 'work/log').read_text().count('run')


def test_the_same_training_is_run_once(training, tmp_path):
    assert str(training()) == str(training()) == 'epoch_3.pth'
    assert runs(tmp_path) == 1
    options = (tmp_path / 'work/options').read_text()
    assert 'randomness.seed=0' in options and 'load_from=None' in options
    assert 'max_epochs' not in options


def test_another_training_replaces_what_is_there(training, tmp_path):
    start = tmp_path / 'start.pth'
    start.touch()
    for changes in (
        dict(seed=1),
        dict(data='others'),
        dict(load_from=start),
        dict(max_epochs=2),
    ):
        training()
        (tmp_path / 'work/old.pth').touch()
        training(**changes)
        assert not (tmp_path / 'work/old.pth').exists(), changes
    options = (tmp_path / 'work/options').read_text()
    assert 'train_cfg.max_epochs=2' in options
    training()
    (tmp_path / 'config.py').write_text('lr = 2')
    (tmp_path / 'work/old.pth').touch()
    training()
    assert not (tmp_path / 'work/old.pth').exists()


def test_an_interrupted_training_is_resumed(training, tmp_path):
    (tmp_path / 'interrupt').touch()
    with pytest.raises(subprocess.CalledProcessError):
        training()
    (tmp_path / 'interrupt').unlink()
    assert str(training()) == 'epoch_3.pth'
    assert runs(tmp_path) == 2
    assert '--resume' in (tmp_path / 'work/options').read_text()


def test_a_note_that_a_kill_has_cut_starts_the_training_anew(
    training, tmp_path
):
    training()
    started = tmp_path / 'work/started.json'
    started.write_text(started.read_text()[:-9])
    assert str(training()) == 'epoch_3.pth'
    assert runs(tmp_path) == 1 and started.read_text().endswith('}')


def test_tools_run_in_the_same_interpreter(tmp_path, capfd):
    tool = tmp_path / 'tool.py'
    tool.write_text('import sys; print(sys.executable, sys.argv[1:])')
    run_tool(tool, 1, tmp_path)
    out = capfd.readouterr().out
    assert f"{sys.executable} ['1', '{tmp_path}']" in out
    assert f'$ python {tool} 1 {tmp_path}' in out
