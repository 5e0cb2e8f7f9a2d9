"""The commands of the study: outputs, errors, and what they do without."""

import json
import re
import subprocess
import sys

import pytest

from studies.regression1d import __main__ as study
from studies.regression1d import ablations, benchmark
from studies.regression1d.settings import METHODS
from studies.regression1d.training import EnsembleTrainer

from ...small_models import ROOT

SMALL = ('training.num_points=32', 'training.num_epochs=2', 'grid_size=64')


def run(out_dir, *arguments, options=SMALL):
    words = ['--out-dir', out_dir, '--models', 2, *arguments]
    study.main([*map(str, words), '--cfg-options', *options])


def result_of(folder):
    return json.loads((folder / 'result.json').read_text())


def test_one_command_gives_numbers_and_pictures_of_every_method(
    tmp_path, capsys
):
    run(tmp_path, '--method', 'all', '--dataset', 'all')
    table = (tmp_path / 'table.md').read_text()
    assert table in capsys.readouterr().out
    assert (tmp_path / 'densities.png').stat().st_size > 10_000
    assert len(json.loads((tmp_path / 'table.json').read_text())) == 14
    for method in METHODS:
        assert re.search(rf'\| {method} +\|', table)
        for dataset in (1, 2):
            folder = tmp_path / f'{method}_dataset{dataset}'
            result = result_of(folder)
            assert len(result['kl']) == 2
            assert len(result['history']['loss']) == 2
            assert (folder / 'curve.png').exists()
            assert (folder / 'densities.png').exists()


def test_cell_that_is_done_is_not_repeated(monkeypatch, tmp_path):
    arguments = ('--method', 'nce', '--dataset', 1)
    run(tmp_path, *arguments)
    monkeypatch.setattr(EnsembleTrainer, 'train_epoch', None)
    run(tmp_path, *arguments)


def test_folder_of_another_experiment_is_refused(tmp_path):
    arguments = ('--method', 'nce', '--dataset', 1)
    run(tmp_path, *arguments)
    with pytest.raises(SystemExit, match='other settings .*lr.*0.01'):
        run(
            tmp_path,
            *arguments,
            options=(*SMALL, 'training.lr=0.01'),
        )


@pytest.mark.parametrize(
    'options, message',
    [
        (('training.num_epochs=0',), 'num_epochs must be a positive'),
        (('training.depth=3',), 'one of .*training.lr.*depth'),
        (('training.lr',), 'expected KEY=VALUE'),
        (('method.beta=-1',), 'beta must not be negative'),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, '--method', 'nce_plus', options=options)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--method', 'ncee'), 'invalid choice: .?ncee'),
        (('--dataset', '3'), 'invalid choice: .?3'),
    ],
)
def test_wrong_names_are_refused_with_the_choices(
    tmp_path, capsys, arguments, message
):
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--models', 0), 'num_models must be a positive'),
        (('--seed', -1), 'seed must be'),
        (('--threads', 0), '--threads must be at least 1'),
        (('--device', 'cuda:99'), 'cannot compute on cuda:99'),
        (('--device', 'abacus'), 'cannot compute on abacus'),
    ],
)
def test_bad_sizes_and_devices_are_refused(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *arguments)


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match='cannot write to .*file'):
        run(tmp_path / 'file' / 'folder')


@pytest.mark.parametrize(
    'ablation, arguments, num_cells',
    [
        ('samples', ('--methods', 'nce', 'ml_is'), 16),
        ('mcmc-steps', ('--steps', '1', '3'), 4),
        ('label-noise', (), 32),
    ],
)
def test_ablations_give_table_list_and_picture(
    tmp_path, ablation, arguments, num_cells
):
    words = [ablation, '--out-dir', str(tmp_path), '--models', '2']
    options = ('training.num_points=32', 'training.num_epochs=1')
    ablations.main(
        [*words, *arguments, '--cfg-options', *options, 'grid_size=32']
    )
    folder = tmp_path / ablation
    cells = json.loads((folder / 'results.json').read_text())
    assert len(cells) == num_cells
    assert (folder / 'kl.png').exists()
    assert cells[0]['line'] in (folder / 'table.md').read_text()


def test_benchmark_compares_all_contenders(tmp_path):
    out = tmp_path / 'out.json'
    words = ['--models', 2, '--samples', 16, '--rounds', 2, '--out', out]
    benchmark.main([*map(str, words)])
    figures = json.loads(out.read_text())['figures']
    assert figures['one at a time, 1 thread']['times_faster'] == 1
    assert len(figures) == 3


WITHOUT_MMDET = """
import runpy
import sys


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmdet', 'mmcv', 'mmengine'):
            raise ImportError(f'{name} is not installed')


sys.meta_path.insert(0, Refusing())
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name='__main__', alter_sys=True)
"""


@pytest.mark.parametrize(
    'arguments',
    [
        'studies.regression1d --method nce_plus --dataset 1 --models 1 '
        '--out-dir {} --cfg-options method.num_samples=4 grid_size=32 '
        'training.num_points=32 training.num_epochs=1',
        'studies.regression1d.ablations --help',
        'studies.regression1d.benchmark --help',
    ],
)
def test_commands_run_where_mmdet_is_not_installed(tmp_path, arguments):
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            WITHOUT_MMDET,
            *arguments.format(tmp_path).split(),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'nce_plus' in done.stdout or 'usage: python -m' in done.stdout


def test_refusal_of_mmdet_is_effective(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT_MMDET, 'mmdet_ebm.models'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 'is not installed' in done.stderr
