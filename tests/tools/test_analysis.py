"""Calibration, energy maps and changes, on a detector of random weights."""

import json
from dataclasses import replace

import pytest
import torch
from mmengine.structures import InstanceData

from mmdet_ebm.models import EnergyDetector

from ..helpers import run_tool, save_checkpoint
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
            'model.detector.test_cfg.rcnn.score_thr': 0.0,
            'model.detector.test_cfg.rcnn.max_per_img': 100,
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


@pytest.fixture
def shifted(monkeypatch):
    """A detector that finds all objects, a tenth of their size off.

    It says that they are half as far off.
    """
    detect = EnergyDetector.detect

    def planted(self, inputs, samples):
        instances = []
        for sample in samples:
            truth = sample.gt_instances
            scale = torch.tensor(sample.scale_factor).repeat(2)
            corners = truth.bboxes * scale
            size = corners[:, 2:] - corners[:, :2]
            instances.append(
                InstanceData(
                    bboxes=corners + 0.1 * size.repeat(1, 2),
                    labels=truth.labels,
                    scores=torch.ones(len(truth)),
                    box_std=0.05 * size.repeat(1, 2),
                )
            )
        return replace(detect(self, inputs, samples), instances=instances)

    monkeypatch.setattr(EnergyDetector, 'detect', planted)


def test_calibration_fits_a_factor_on_val_and_reports_on_test(
    energy, shifted, monkeypatch, tmp_path, capsys
):
    """Errors are 0.1 of the box, and images are twice as large."""
    calibrate(
        monkeypatch,
        energy,
        tmp_path / 'out',
        '--cfg-options',
        'val_dataloader.dataset.pipeline.1.scale=(320,320)',
        'test_dataloader.dataset.pipeline.1.scale=(320,320)',
    )
    figures = json.loads((tmp_path / 'out.json').read_text())
    first, second = figures['runs']
    assert first == second
    usual, scaled = first['as_it_is'], first['scaled']
    assert usual['matched'] == scaled['matched'] > 3
    assert usual['std_median'] == pytest.approx(0.05)
    assert usual['z_rms'] == pytest.approx(2)
    assert first['factor'] == pytest.approx(2)
    assert scaled['z_rms'] == pytest.approx(1)
    assert scaled['nll'] < usual['nll']
    assert set(scaled['coverage']) == {'50', '80', '90', '95'}
    # All errors are twice the deviation: intervals end there, and hold all.
    assert first['half_widths'] == pytest.approx([2] * 4, rel=1e-5)
    assert first['quantiles']['z_rms'] == pytest.approx(2)
    table = (tmp_path / 'out.md').read_text()
    assert '| scaled on val ' in table and table in capsys.readouterr().out
    assert (tmp_path / 'out.png').exists()


def test_calibration_without_matches_says_so(energy, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match='no detection on val matches'):
        calibrate(monkeypatch, energy, tmp_path / 'out', '--score-thr', '1.1')


def test_calibration_needs_an_energy_model(digits, monkeypatch, tmp_path):
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    plain = shrunk_config('digits/faster-rcnn_r18-half_digits.py', tmp_path)
    checkpoint = save_checkpoint(plain, tmp_path / 'plain.pth')
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


def test_boxes_that_changed_most_are_drawn(
    energy, monkeypatch, tmp_path, capsys
):
    config, checkpoint = energy
    detect = EnergyDetector.detect

    def planted(self, inputs, samples):
        """The best detections lie a few pixels from annotations."""
        found = detect(self, inputs, samples)
        for instances, sample in zip(found.instances, samples):
            truth = sample.gt_instances
            if 'bboxes' not in truth:  # an image that is to be drawn
                continue
            scale = torch.tensor(sample.scale_factor).repeat(2)
            corners = truth.bboxes * scale
            number = len(truth)
            instances.bboxes[:number] = corners + 1
            instances.initial_bboxes[:number] = corners + 2
            instances.labels[:number] = truth.labels
        return found

    monkeypatch.setattr(EnergyDetector, 'detect', planted)
    arguments = (config, checkpoint, '--device', 'cpu', '--number', '1')
    run_tool(
        monkeypatch,
        'analysis/changes',
        *arguments,
        '--out-dir',
        tmp_path,
        '--score-thr',
        '0',
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        f'{kind}_0.jpg' for kind in ('better', 'typical', 'worse')
    }
    text = capsys.readouterr().out
    assert ' 100 % fit better, 0 % worse' in text
    with pytest.raises(SystemExit, match='no detection of val matches'):
        run_tool(
            monkeypatch, 'analysis/changes', *arguments, '--score-thr', '1.1'
        )
