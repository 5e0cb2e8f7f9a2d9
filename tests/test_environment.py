"""Version bounds, safe checkpoint loading, clear refusals, a pure core."""

import os
import pickle
import re
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from mmdet_ebm import environment

from .small_models import ROOT


@pytest.mark.parametrize(
    'package, version, wanted',
    [
        ('mmcv', '3.0.0', r'mmcv>=2.0.0,<3.0.0, found 3.0.0'),
        ('mmdet', '2.28.1', r'mmdet>=3.2.0,<4.0.0, found 2.28.1'),
        ('mmengine', '0.7.0', r'mmengine>=0.10.0,<1.0.0, found 0.7.0'),
        ('torch', '2.5.1+cu121', r'torch>=2.6.0, found 2.5.1'),
    ],
)
def test_unsupported_versions_are_named(monkeypatch, package, version, wanted):
    real = environment.importlib.import_module
    monkeypatch.setattr(
        environment.importlib,
        'import_module',
        lambda name: (
            SimpleNamespace(__version__=version)
            if name == package
            else real(name)
        ),
    )
    with pytest.raises(ImportError, match=wanted):
        environment.check_versions()


def test_an_mmcv_that_mmdet_refuses_is_named(monkeypatch):
    real = environment.importlib.import_module

    def imported(name):
        if name == 'mmdet':
            raise AssertionError('MMCV==2.2.0 is used but incompatible')
        return (
            SimpleNamespace(__version__='2.2.0')
            if name == 'mmcv'
            else (real(name))
        )

    monkeypatch.setattr(environment.importlib, 'import_module', imported)
    with pytest.raises(ImportError, match='MMCV==2.2.0 is used'):
        environment.check_versions()


def test_versions_of_the_maintained_forks_are_accepted(monkeypatch):
    versions = dict(mmcv='2.3.6', mmengine='0.10.12', mmdet='3.5.1')
    real = environment.importlib.import_module
    monkeypatch.setattr(
        environment.importlib,
        'import_module',
        lambda name: (
            SimpleNamespace(__version__=versions[name])
            if name in versions
            else real(name)
        ),
    )
    environment.check_versions()


def test_a_missing_package_is_named(monkeypatch):
    def fail(name):
        raise ImportError('no such module')

    monkeypatch.setattr(environment.importlib, 'import_module', fail)
    with pytest.raises(ImportError, match='mmdet_ebm needs torch>=2.6.0'):
        environment.check_versions()


def test_mmengine_checkpoints_load_with_weights_only(tmp_path):
    environment.require_mmdet()
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    path = tmp_path / 'checkpoint.pth'
    torch.save(
        dict(message_hub=dict(loss=history), weight=torch.ones(2)), path
    )
    loaded = torch.load(path, weights_only=True)
    assert loaded['message_hub']['loss'].mean() == 1.5


class RunsCode:
    def __reduce__(self):
        return os.system, ('true',)


class ReadsAttribute:
    """What an attacker would want getattr for."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize('payload', [RunsCode(), ReadsAttribute()])
def test_checkpoints_that_run_code_are_still_refused(tmp_path, payload):
    path = tmp_path / 'bad.pth'
    torch.save(dict(payload=payload), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


WITHOUT_MMDET = """
import sys

class Refuse:
    def find_spec(self, name, *args):
        if name.split('.')[0] in ('mmdet', 'mmcv', 'mmengine'):
            raise ImportError(f'{name} must not be needed')

sys.meta_path.insert(0, Refuse())
import torch
from mmdet_ebm import core, ops

method = core.NCEPlus(sigmas=(0.1,), num_samples=4, beta=0.1)
losses, info = method(lambda y: -y.square().sum(-1), torch.zeros(2, 4))
assert losses.shape == (2,) and info.noise.shape == (2, 4)
rois = torch.tensor([[0.0, 1, 1, 3, 3]])
assert ops.prroi_pool(torch.ones(1, 1, 4, 4), rois, 2).mean() == 1
try:
    import mmdet_ebm.models
except ImportError as error:
    print(error)
"""


def test_core_and_ops_work_without_mmdet_and_models_say_what_is_missing():
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_MMDET],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'mmdet_ebm needs mmengine>=0.10.0' in done.stdout


@pytest.mark.parametrize(
    'package', ['apis', 'engine', 'evaluation', 'models', 'visualization']
)
def test_packages_that_need_mmdet_check_before_they_import_it(package):
    text = (ROOT / 'mmdet_ebm' / package / '__init__.py').read_text()
    imports = re.findall(r'^(?:from|import) .*|^require_mmdet.*', text, re.M)
    assert imports[:2] == [
        'from ..environment import require_mmdet',
        'require_mmdet()',
    ]


COMMANDS = sorted(
    str(path.relative_to(ROOT))
    for folder in ('tools', 'studies', 'benchmarks')
    for path in (ROOT / folder).rglob('*.py')
    if "__name__ == '__main__'" in path.read_text()
    or path.name == '__main__.py'
)


def test_all_kinds_of_commands_are_known():
    assert {
        'tools/train.py',
        'tools/analysis/calibration.py',
        'studies/crossed.py',
        'studies/regression1d/__main__.py',
        'benchmarks/__main__.py',
    } <= set(COMMANDS)


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_explain_themselves(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, 'argv', [command, '--help'])
    with pytest.raises(SystemExit) as caught:
        if command.startswith('tools/'):
            monkeypatch.syspath_prepend((ROOT / command).parent)
            runpy.run_path(command, run_name='__main__')
        else:
            module = command.removesuffix('.py').replace('/', '.')
            runpy.run_module(module, run_name='__main__')
    assert caught.value.code == 0
    # A fork of mmdet prints a line of its own when it is imported.
    assert 'usage:' in capsys.readouterr().out[:200]
