"""The published settings, changes of them, and what is refused."""

import pytest

from studies.regression1d.settings import (
    TrainingSettings,
    build_method,
    load_experiment,
    parse_options,
)

PUBLISHED = {
    'ml_is': dict(type='MLIS', sigmas=(0.2, 1.6)),
    'kld_is': dict(type='KLDIS', sigmas=(0.2, 1.6), sigma_gt=0.025),
    'ml_mcmc': dict(type='MLMCMC', num_steps=16),
    'nce': dict(type='NCE', sigmas=(0.1, 0.8)),
    'nce_plus': dict(type='NCEPlus', sigmas=(0.1, 0.8), beta=0.025),
    'sm': dict(type='SM'),
    'dsm': dict(type='DSM'),
}


@pytest.mark.parametrize('dataset', [1, 2])
@pytest.mark.parametrize('method', PUBLISHED)
def test_settings_are_the_published_ones(method, dataset):
    by_dataset = {
        'ml_mcmc': dict(step_size=(0.05, 0.0125)[dataset - 1]),
        'dsm': dict(sigma=(0.2, 0.075)[dataset - 1]),
    }
    samples = {} if method == 'sm' else dict(num_samples=1024)
    experiment = load_experiment(method, dataset)
    assert experiment.method == {
        **PUBLISHED[method],
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


def test_options_change_what_they_name_and_nothing_else():
    changed = load_experiment(
        'nce_plus', 1, {'method.beta': 0.1, 'training.lr': 0.01, 'num_best': 2}
    )
    published = load_experiment('nce_plus', 1)
    assert changed.method == {**published.method, 'beta': 0.1}
    assert changed.training == TrainingSettings(lr=0.01)
    assert (changed.num_best, changed.grid_size) == (2, 2048)


def test_options_are_parsed_as_literals():
    words = ['training.num_epochs=3', 'method.sigmas=(0.1, 0.8)', 'a=-1e-3']
    assert parse_options(words) == {
        'training.num_epochs': 3,
        'method.sigmas': (0.1, 0.8),
        'a': -1e-3,
    }


@pytest.mark.parametrize('word', ['lr', 'lr=', '=3', 'lr=fast', 'lr=f(1)'])
def test_options_of_another_form_are_refused(word):
    with pytest.raises(ValueError, match='expected KEY=VALUE .*got .*'):
        parse_options([word])


@pytest.mark.parametrize(
    'key', ['training.depth', 'method.beta', 'method.type', 'lr', 'training']
)
def test_unknown_options_are_refused_with_the_known_ones(key):
    known = 'one of method.sigmas, method.num_samples, training.num_models,'
    with pytest.raises(ValueError, match=f'{known} .*got .{key}'):
        load_experiment('nce', 1, {key: 1})


@pytest.mark.parametrize(
    'method, message',
    [
        (dict(type='Adam'), "must be one of MLIS, .*got 'Adam'"),
        (dict(), 'got None'),
        (dict(type='SM', num_samples=3), 'settings of SM: .*num_samples'),
        (
            dict(type='NCE', sigmas=(0.1, 0.8), num_samples=0),
            'num_samples must be a positive',
        ),
    ],
)
def test_methods_that_cannot_be_built_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        build_method(method)


@pytest.mark.parametrize(
    'setting',
    [
        dict(num_models=0),
        dict(num_points=-1),
        dict(batch_size=1.5),
        dict(num_epochs=0),
        dict(width=0),
        dict(lr=0.0),
        dict(lr='fast'),
        dict(seed=-1),
        dict(label_noise=-0.1),
        dict(label_noise=float('inf')),
    ],
)
def test_values_out_of_range_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f'{name} must be .*got {value!r}'):
        TrainingSettings(**setting)


@pytest.mark.parametrize(
    'method, dataset, options, message',
    [
        ('ncee', 1, {}, "method must be one of .*got 'ncee'"),
        ('nce', 3, {}, 'data set must be one of .*got 3'),
        ('nce', 1, dict(grid_size=0), 'grid_size must be .*got 0'),
        ('nce', 1, dict(num_best=0), 'num_best must be .*got 0'),
    ],
)
def test_experiments_that_do_not_fit_are_refused(
    method, dataset, options, message
):
    with pytest.raises(ValueError, match=message):
        load_experiment(method, dataset, options)
