"""A cell of the study: interrupted, resumed, summed up."""

import json

import numpy as np
import pytest

from studies.regression1d.experiment import run_experiment, summarise
from studies.regression1d.settings import load_experiment
from studies.regression1d.training import EnsembleTrainer


def small_experiment(method):
    return load_experiment(
        method,
        1,
        {
            'training.num_points': 64,
            'training.num_models': 2,
            'training.num_epochs': 6,
            'grid_size': 64,
        },
    )


@pytest.mark.parametrize('method', ['nce_plus', 'dsm'])
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


def test_interrupted_write_leaves_the_last_checkpoint(monkeypatch, tmp_path):
    """And the rest of it does not keep the cell from going on."""
    experiment = small_experiment('sm')
    whole = run_experiment(experiment, tmp_path / 'whole')
    dump = json.dumps

    def cut(value, **options):
        if 'kl' in value:
            raise KeyboardInterrupt
        return dump(value, **options)

    monkeypatch.setattr(json, 'dumps', cut)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / 'cut')
    monkeypatch.undo()
    (tmp_path / 'cut' / 'result.json.part').write_text('{"kl": [')
    assert not (tmp_path / 'cut' / 'result.json').exists()
    assert run_experiment(experiment, tmp_path / 'cut')['kl'] == whole['kl']


def test_pictures_show_the_model_of_the_median(tmp_path):
    result = run_experiment(small_experiment('sm'), tmp_path)
    with np.load(tmp_path / 'densities.npz') as arrays:
        assert arrays['kl'] == pytest.approx(sorted(result['kl'])[0])
        for name in ('true', 'learned'):
            density = arrays[name]
            assert density.shape == (256, 256)
            np.testing.assert_allclose(density.mean(1) * 6, 1, rtol=5e-3)


def test_summary_is_of_the_best_and_of_all():
    summary = summarise([3.0, 1.0, 2.0, 6.0], num_best=2)
    assert summary['best'] == dict(mean=1.5, std=0.5**0.5, count=2)
    assert summary['all']['mean'] == 3.0
    assert summarise([2.0], 5)['best'] == dict(mean=2.0, std=0.0, count=1)


def test_diverged_model_counts_among_the_worst():
    summary = summarise([float('nan'), 1.0, 2.0], num_best=2)
    assert summary['best']['mean'] == 1.5
    assert summary['all']['mean'] == float('inf')
