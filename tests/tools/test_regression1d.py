"""The tools of the 1D study: outputs, resuming, errors."""

import json
import re

import pytest
from mmengine.config import Config

from mmdet_ebm.regression1d import EnsembleTrainer, Experiment
from mmdet_ebm.regression1d.experiment import run_experiment, summarise

from ..conftest import CONFIGS
from .conftest import run_tool

SMALL = ('training.num_points=32', 'training.num_epochs=2', 'grid_size=64')
METHODS = ('ml_is', 'kld_is', 'ml_mcmc', 'nce', 'nce_plus', 'sm', 'dsm')


def run(monkeypatch, out_dir, *arguments, options=SMALL):
    return run_tool(
        monkeypatch,
        'regression1d',
        '--out-dir',
        out_dir,
        '--models',
        2,
        *arguments,
        '--cfg-options',
        *options,
    )


def result_of(folder):
    return json.loads((folder / 'result.json').read_text())


def test_one_command_gives_numbers_and_pictures_of_every_method(
    monkeypatch, tmp_path, capsys
):
    run(monkeypatch, tmp_path, '--method', 'all', '--dataset', 'all')
    table = (tmp_path / 'table.md').read_text()
    assert table in capsys.readouterr().out
    assert (tmp_path / 'densities.png').stat().st_size > 10_000
    assert len(json.loads((tmp_path / 'table.json').read_text())) == 14
    for method in METHODS:
        assert f'| {method} |' in table
        for dataset in (1, 2):
            folder = tmp_path / f'{method}_dataset{dataset}'
            result = result_of(folder)
            assert len(result['kl']) == 2
            assert len(result['history']['loss']) == 2
            assert (folder / 'curve.png').exists()
            assert (folder / 'densities.png').exists()


def test_cell_that_is_done_is_not_repeated(monkeypatch, tmp_path):
    arguments = ('--method', 'nce', '--dataset', 1)
    run(monkeypatch, tmp_path, *arguments)
    monkeypatch.setattr(EnsembleTrainer, 'train_epoch', None)
    run(monkeypatch, tmp_path, *arguments)


def small_experiment(method, **training):
    path = CONFIGS / f'regression1d/{method}_dataset1.py'
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(
        {
            'training.num_points': 64,
            'training.num_models': 2,
            'training.num_epochs': 6,
            'grid_size': 64,
        }
    )
    cfg.training.update(training)
    return Experiment.from_dict(cfg.to_dict())


@pytest.mark.parametrize('method', ['nce-plus', 'dsm'])
def test_interrupted_cell_ends_with_the_same_numbers(
    monkeypatch, tmp_path, method
):
    """Interrupted after the checkpoint of epoch 4, in epoch 6."""
    experiment = small_experiment(method)
    whole = run_experiment(
        experiment, tmp_path / 'whole', checkpoint_interval=2
    )
    train_epoch = EnsembleTrainer.train_epoch

    def interrupted(self):
        if self.epoch == 5:
            raise KeyboardInterrupt
        return train_epoch(self)

    monkeypatch.setattr(EnsembleTrainer, 'train_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / 'cut', checkpoint_interval=2)
    monkeypatch.setattr(EnsembleTrainer, 'train_epoch', train_epoch)
    resumed = run_experiment(
        experiment, tmp_path / 'cut', checkpoint_interval=2
    )
    assert resumed['kl'] == whole['kl']
    assert resumed['history']['loss'] == whole['history']['loss']
    assert resumed['history']['kl'] == whole['history']['kl']


def test_folder_of_another_experiment_is_refused(monkeypatch, tmp_path):
    arguments = ('--method', 'nce', '--dataset', 1)
    run(monkeypatch, tmp_path, *arguments)
    with pytest.raises(SystemExit, match='other settings .*lr.*0.01'):
        run(
            monkeypatch,
            tmp_path,
            *arguments,
            options=(*SMALL, 'training.lr=0.01'),
        )


@pytest.mark.parametrize(
    'options, message',
    [
        (('training.num_epochs=0',), 'num_epochs must be a positive'),
        (('training.batch_size=2.5',), 'batch_size must be a positive'),
        (('training.depth=3',), 'depth'),
        (('method.type=Adam',), 'method type must be one of MLIS'),
        (('method.beta=-1',), 'beta must not be negative'),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    monkeypatch, tmp_path, options, message
):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, tmp_path, '--method', 'nce_plus', options=options)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--method', 'ncee'), 'invalid choice: .?ncee'),
        (('--dataset', '3'), 'invalid choice: .?3'),
    ],
)
def test_wrong_names_are_refused_with_the_choices(
    monkeypatch, tmp_path, capsys, arguments, message
):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, *arguments)
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
def test_bad_sizes_and_devices_are_refused(
    monkeypatch, tmp_path, arguments, message
):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, tmp_path, *arguments)


def test_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match='cannot write to .*file'):
        run(monkeypatch, tmp_path / 'file' / 'folder')


@pytest.mark.parametrize(
    'ablation, arguments, num_cells',
    [
        ('samples', ('--methods', 'nce', 'ml_is'), 16),
        ('mcmc-steps', ('--steps', '1', '3'), 4),
        ('label-noise', (), 32),
    ],
)
def test_ablations_give_table_list_and_picture(
    monkeypatch, tmp_path, ablation, arguments, num_cells
):
    run_tool(
        monkeypatch,
        'ablate_regression1d',
        ablation,
        '--out-dir',
        tmp_path,
        '--models',
        2,
        *arguments,
        '--cfg-options',
        'training.num_points=32',
        'training.num_epochs=1',
        'grid_size=32',
    )
    folder = tmp_path / ablation
    cells = json.loads((folder / 'results.json').read_text())
    assert len(cells) == num_cells
    assert (folder / 'kl.png').exists()
    assert cells[0]['line'] in (folder / 'table.md').read_text()


def test_benchmark_compares_all_contenders(monkeypatch, tmp_path):
    run_tool(
        monkeypatch,
        'benchmark_regression1d',
        '--models',
        2,
        '--samples',
        16,
        '--rounds',
        2,
        '--out',
        tmp_path / 'out.json',
    )
    figures = json.loads((tmp_path / 'out.json').read_text())['figures']
    assert figures['plain, 1 thread']['times_faster'] == 1
    assert len(figures) == 4


def test_summary_is_of_the_best_and_of_all():
    summary = summarise([3.0, 1.0, 2.0, 6.0], num_best=2)
    assert summary['best'] == dict(mean=1.5, std=0.5**0.5, count=2)
    assert summary['all']['mean'] == 3.0
    assert summarise([2.0], 5)['best'] == dict(mean=2.0, std=0.0, count=1)


def test_diverged_model_counts_among_the_worst():
    summary = summarise([float('nan'), 1.0, 2.0], num_best=2)
    assert summary['best']['mean'] == 1.5
    assert summary['all']['mean'] == float('inf')


@pytest.mark.parametrize(
    'method, published',
    [
        ('ml-is', dict(type='MLIS', sigmas=(0.2, 1.6))),
        ('kld-is', dict(type='KLDIS', sigmas=(0.2, 1.6), sigma_gt=0.025)),
        ('ml-mcmc', dict(type='MLMCMC', num_steps=16)),
        ('nce', dict(type='NCE', sigmas=(0.1, 0.8))),
        ('nce-plus', dict(type='NCEPlus', sigmas=(0.1, 0.8), beta=0.025)),
        ('sm', dict(type='SM')),
        ('dsm', dict(type='DSM')),
    ],
)
@pytest.mark.parametrize('dataset', [1, 2])
def test_configs_hold_the_published_settings(method, published, dataset):
    by_dataset = {
        'ml-mcmc': dict(step_size=(0.05, 0.0125)[dataset - 1]),
        'dsm': dict(sigma=(0.2, 0.075)[dataset - 1]),
    }
    samples = {} if method == 'sm' else dict(num_samples=1024)
    cfg = Config.fromfile(
        CONFIGS / f'regression1d/{method}_dataset{dataset}.py'
    )
    experiment = Experiment.from_dict(cfg.to_dict())
    assert experiment.method == {
        **published,
        **samples,
        **by_dataset.get(method, {}),
    }
    assert experiment.dataset == dataset
    training = experiment.training
    assert (
        training.num_models,
        training.num_points,
        training.batch_size,
        training.num_epochs,
        training.lr,
        training.width,
        training.label_noise,
    ) == (20, 2000, 32, 75, 1e-3, 10, 0.0)
    assert (experiment.grid_size, experiment.num_best) == (2048, 5)
