"""Noise of annotations is studied, a cell for each noise and beta."""

import json

import pytest

from studies.label_noise import main


def test_label_noise_is_studied(plain, digits, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('DIGITS_ROOT', 'to be set')
    arguments = f"""--work-dir {tmp_path} --data {digits} --noise 0 0.1
        --beta 0 0.5 --seeds 0 --plain {plain} --steps 2 --samples 4
        --device cpu"""
    main(arguments.split())
    figures = json.loads((tmp_path / 'label_noise.json').read_text())
    assert [(c['noise'], c['beta']) for c in figures['cells']] == [
        (0, 0),
        (0, 0.5),
        (0.1, 0),
        (0.1, 0.5),
    ]
    assert all(len(cell['runs']) == 1 for cell in figures['cells'])
    assert (tmp_path / 'label_noise.png').stat().st_size > 10_000
    table = (tmp_path / 'label_noise.md').read_text()
    assert '| 0.1 ' in table and '| AP90, noise ' in table
    assert 'Plain detector: AP ' in table
    assert table in capsys.readouterr().out


def test_negative_noise_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(['--noise', '-0.1'])
    assert 'negative' in capsys.readouterr().err
