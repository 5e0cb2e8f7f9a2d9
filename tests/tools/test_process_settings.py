"""torch finds its settings in the environment when it is loaded."""

import ast
import subprocess
import sys

import pytest

from ..small_models import ROOT

SETTINGS = 'mmdet_ebm.process_settings'


@pytest.mark.parametrize(
    'name',
    [
        'tools/train.py',
        'tools/tune.py',
        'tools/demo.py',
        'tools/check_coco.py',
        'tools/convert_checkpoint.py',
        'tools/export.py',
        'tools/analysis/calibration.py',
        'tools/analysis/energy_map.py',
        'tools/test.py',
        'tools/infer.py',
        'tools/explore.py',
        'tools/fit_density.py',
        'tools/fit_tracker.py',
        'tools/refine_tracks.py',
        'tools/track.py',
        'benchmarks/__main__.py',
    ],
)
def test_settings_are_made_before_torch_is_imported(name):
    imported = []
    for statement in ast.parse((ROOT / name).read_text()).body:
        if isinstance(statement, ast.Import):
            imported += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            imported.append(statement.module)
    before = imported[: imported.index(SETTINGS)]
    assert {module.split('.')[0] for module in before} <= (
        sys.stdlib_module_names
    )


def settings(**environment):
    """What is set, and whether torch was loaded on the way."""
    program = (
        f'import os, sys, {SETTINGS};'
        "print(os.environ['THP_MEM_ALLOC_ENABLE'],"
        "os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    return subprocess.run(
        [sys.executable, '-c', program],
        env=dict(PYTHONPATH=str(ROOT), **environment),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_waiting_threads_leave_their_core_unless_told_otherwise():
    assert settings() == ['1', 'PASSIVE', 'False']
    assert settings(OMP_WAIT_POLICY='ACTIVE') == ['1', 'ACTIVE', 'False']


def test_warnings_that_nobody_can_do_anything_about_are_not_shown():
    program = (
        f'import {SETTINGS}, warnings;'
        "warnings.warn('pkg_resources is deprecated as an API', UserWarning);"
        "warnings.warn('something else', UserWarning)"
    )
    shown = subprocess.run(
        [sys.executable, '-c', program],
        env=dict(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert 'something else' in shown and 'pkg_resources' not in shown
