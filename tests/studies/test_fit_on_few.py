"""Fits on a few images, each of which refines the whole test split."""

import json

import pytest
import torch
from mmengine.config import Config

from studies import fit_on_few
from tests.small_models import CONFIGS, build

CONFIG = CONFIGS / 'digits/faster-rcnn_r18-half_nce-plus_digits.py'


def test_each_fit_is_of_its_own_images(digits, monkeypatch, tmp_path):
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    torch.manual_seed(0)
    checkpoint = tmp_path / 'energy.pth'
    model = build(Config.fromfile(CONFIG).model)
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    fits = []

    def fit(model, batches):
        assert not model.energy_model.density.fitted
        fits.append(
            [
                sample.img_id
                for batch in batches
                for sample in batch['data_samples']
            ]
        )
        if len(fits) == 1:
            raise ValueError('no detection matches an annotation')
        model.energy_model.density.set_numbers(temperature=5.0)
        model.energy_model.density.fitted = True
        return 'fitted'

    monkeypatch.setattr(fit_on_few, 'fit_model', fit)
    out = tmp_path / 'few.json'
    fit_on_few.main(
        [str(CONFIG), str(checkpoint), '--images', '2', '9', '--draws', '2']
        + ['--out', str(out)]
    )
    assert [len(images) for images in fits] == [2, 2, 4]  # val has four
    assert all(len(set(images)) == len(images) for images in fits)
    figures = json.loads(out.read_text())
    assert len(figures['plain']) == 1
    first, second, whole = figures['fits']
    assert (first['images'], first['draw']) == (2, 0)
    assert first['fit'] == 'no detection matches an annotation'
    assert first['density']['temperature'] == 2  # cautious
    assert (second['draw'], second['density']['temperature']) == (1, 5)
    assert (whole['images'], whole['draw']) == (9, 0)
    _, _, *rows = out.with_suffix('.md').read_text().splitlines()
    cells = [row.split('|')[1:3] for row in rows]
    assert [[int(c) for c in row] for row in cells] == [[2, 2], [9, 1]]


def test_numbers_below_1_are_refused(capsys):
    with pytest.raises(SystemExit):
        fit_on_few.main([str(CONFIG), 'model.pth', '--images', '0'])
    assert 'of 1 or more' in capsys.readouterr().err


def test_gains_are_points_over_the_same_checkpoint():
    names = ('AP', 'AP50', 'AP75', 'AP90')
    figures = dict(
        plain=[dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.6)],
        fits=[
            dict(images=5, checkpoint=0, refined=dict.fromkeys(names, 0.53)),
            dict(images=5, checkpoint=1, refined=dict.fromkeys(names, 0.61)),
        ],
    )
    assert '| +2.0 (+1.0 to +3.0) ' in fit_on_few.to_markdown(figures)
