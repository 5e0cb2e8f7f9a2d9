"""Calibration, energy maps: from the command line, on a random detector."""

import json

import pytest

from mmdet_ebm.models import EnergyRefiner

from ..apis.conftest import save_checkpoint
from .conftest import run_tool
from .test_pipeline import shrunk_config


@pytest.fixture(scope='module')
def energy(digits, tmp_path_factory):
    """Config and checkpoint of a detector that finds boxes of every class."""
    patch = pytest.MonkeyPatch()
    patch.setenv('DIGITS_ROOT', str(digits))
    folder = tmp_path_factory.mktemp('analysis')
    config = shrunk_config(
        'digits/faster-rcnn_r18-half_nce-plus_digits.py',
        folder,
        **{
            'model.test_cfg.rcnn.score_thr': 0.0,
            'model.test_cfg.rcnn.max_per_img': 100,
        },
    )
    yield config, save_checkpoint(config, folder / 'random.pth')
    patch.undo()


def calibrate(monkeypatch, energy, out, *options):
    config, checkpoint = energy
    run_tool(
        monkeypatch,
        'analysis/calibration',
        config,
        checkpoint,
        checkpoint,
        '--out',
        out,
        '--device',
        'cpu',
        '--min-iou',
        '0.1',
        *options,
    )


def test_calibration_fits_a_temperature_and_reports_on_test(
    energy, monkeypatch, tmp_path, capsys
):
    """f is a Gaussian of width 0.1, in a region wide enough for any error."""
    monkeypatch.setattr(
        EnergyRefiner,
        'logdensity_fn',
        lambda *args: lambda t: -0.5 * (t / 0.1).square().sum(-1),
    )
    calibrate(
        monkeypatch,
        energy,
        tmp_path / 'out',
        '--cfg-options',
        'model.roi_head.refiner.uncertainty.sigmas=[0.1,0.3,1.0]',
        'model.roi_head.refiner.uncertainty.num_samples=512',
    )
    figures = json.loads((tmp_path / 'out.json').read_text())
    first, second = figures['runs']
    assert first == second
    cold, fitted = first['temperature_1'], first['fitted']
    assert first['temperature'] > 1  # random boxes are far off
    assert cold['matched'] == fitted['matched'] > 3
    assert fitted['nll'] < cold['nll'] and fitted['z_rms'] < cold['z_rms']
    # x1 = t - exp(l) / 2 with both of width 0.1: 0.112, and 0.1 at T = 1.
    assert cold['std_median'] == pytest.approx(0.112, rel=0.1)
    assert set(fitted['coverage']) == {'50', '80', '90', '95'}
    assert '| fitted T |' in capsys.readouterr().out
    assert (tmp_path / 'out.md').exists() and (tmp_path / 'out.png').exists()


def test_calibration_without_matches_says_so(energy, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match='no detection on val matches'):
        calibrate(monkeypatch, energy, tmp_path / 'out', '--score-thr', '1.1')


def test_calibration_needs_an_energy_model(energy, monkeypatch, tmp_path):
    config, checkpoint = energy
    plain = shrunk_config('digits/faster-rcnn_r18-half_digits.py', tmp_path)
    with pytest.raises(SystemExit, match='has no energy model'):
        calibrate(monkeypatch, (plain, checkpoint), tmp_path / 'out')


def test_energy_maps_of_an_image(energy, digits, monkeypatch, tmp_path):
    config, checkpoint = energy
    image = min((digits / 'images').glob('test_*.png'))
    arguments = (
        config,
        checkpoint,
        image,
        '--out-dir',
        tmp_path,
        '--resolution',
        '5',
        '--device',
        'cpu',
        '--detection',
    )
    run_tool(monkeypatch, 'analysis/energy_map', *arguments, '3', '--gif')
    assert {path.name for path in tmp_path.iterdir()} == {
        f'{image.stem}_3.{kind}' for kind in ('png', 'gif')
    }
    with pytest.raises(SystemExit, match='no detection 500: the image has'):
        run_tool(monkeypatch, 'analysis/energy_map', *arguments, '500')
