"""Version bounds, safe checkpoint loading, clear refusals, a pure core."""

import ast
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from mmdet_ebm import environment

from .conftest import ROOT


@pytest.mark.parametrize(
    'package, version, wanted',
    [
        ('mmcv', '2.2.0', r'mmcv>=2.0.0,<2.2.0, found 2.2.0'),
        ('mmdet', '2.28.1', r'mmdet>=3.2.0,<4.0.0, found 2.28.1'),
        ('mmengine', '0.7.0', r'mmengine>=0.10.0,<1.0.0, found 0.7.0'),
        ('torch', '1.13.1+cu117', r'torch>=2.0.0, found 1.13.1'),
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


def test_a_missing_package_is_named(monkeypatch):
    def fail(name):
        raise ImportError('no such module')

    monkeypatch.setattr(environment.importlib, 'import_module', fail)
    with pytest.raises(ImportError, match='mmdet_ebm needs torch>=2.0.0'):
        environment.check_versions()


def test_mmengine_checkpoints_load_with_weights_only(tmp_path):
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


@pytest.mark.parametrize('package', ['core', 'ops'])
def test_core_and_ops_import_torch_alone(package):
    allowed = set(sys.stdlib_module_names) | {'torch'}
    for path in (ROOT / 'mmdet_ebm' / package).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.ImportFrom):
                depth = len(path.relative_to(ROOT / 'mmdet_ebm').parts)
                assert node.level < depth or node.module in ('core', 'ops')
                continue
            else:
                continue
            assert {name.split('.')[0] for name in names} <= allowed, path


@pytest.mark.parametrize(
    'tool',
    [
        'train',
        'test',
        'infer',
        'make_digits',
        'demo',
        'study',
        'compare_stages',
    ],
)
def test_tools_explain_themselves(tool):
    done = subprocess.run(
        [sys.executable, f'tools/{tool}.py', '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('usage:')
