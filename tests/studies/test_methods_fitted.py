"""The methods under the fitted density, and a study that continues."""

import json

from studies.compare_methods import METHODS
from studies.methods_fitted import SEVEN, chosen_settings, main
from tests.small_models import ROOT


def test_methods_are_fitted_compared_and_not_trained_twice(
    plain, digits, monkeypatch, tmp_path
):
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    monkeypatch.setattr(
        'studies.methods_fitted.fit_model',
        lambda model, batches: f'{len(batches)} batches',
    )
    arguments = f"""digits --work-dir {tmp_path} --seeds 0 --plain {plain}
        --steps 2 --samples 4 --device cpu --methods NCE+ NCE""".split()
    main(arguments)
    figures = json.loads((tmp_path / 'methods_fitted.json').read_text())
    placed = {
        f'{name}, {at}'
        for name in ('NCE', 'NCE+')
        for at in ('placed', 'refined')
    }
    assert set(figures['stages']) == {'plain', 'voted'} | placed
    assert 'NCE, refined - NCE+, refined' in figures['differences']
    assert figures['fits']['NCE'][0]['line'].endswith('batches')
    weights = list(tmp_path.glob('seed0/*/energy_model.pth'))
    assert len(weights) == 2
    for path in weights:
        path.unlink()
    main(arguments)
    assert not list(tmp_path.glob('seed0/*/energy_model.pth'))


def test_settings_of_older_figures_name_the_loss_of_today():
    for data in ('digits', 'bccd'):
        settings = chosen_settings(ROOT / f'docs/results/methods_{data}.json')
        assert set(settings) == set(METHODS)
        keys = {key for each in settings.values() for key in each}
        assert not any('roi_head' in key for key in keys)
    assert len(SEVEN) == 7
