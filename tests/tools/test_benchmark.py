"""The benchmark: its sections run, and its baselines compute the same."""

import importlib
import json

import pytest
import torch

from ..conftest import ROOT

DIGITS = 'configs/digits/faster-rcnn_r18-half_nce-plus_digits.py'


@pytest.fixture
def small(monkeypatch):
    """The benchmark's scenes, in seconds instead of minutes."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'tools')
    benchmark = importlib.import_module('benchmark')
    monkeypatch.setattr(benchmark, 'COCO_CONFIG', DIGITS)
    monkeypatch.setattr(benchmark, 'R50_IMAGE', (96, 128))
    monkeypatch.setattr(benchmark, 'SMALL', {})
    monkeypatch.setattr(
        benchmark,
        'NUM_BOXES',
        dict(pooling=(6,), noise=5, detections=9, objects=16),
    )
    return benchmark


@pytest.mark.parametrize(
    'section', ['pooling', 'refinement', 'detector', 'training', 'growth']
)
def test_sections_run_and_report_ratios(small, section, monkeypatch, tmp_path):
    out = tmp_path / 'figures.json'
    monkeypatch.setattr(
        'sys.argv',
        [
            'benchmark',
            section,
            '--rounds',
            '2',
            '--device',
            'cpu',
            '--out',
            str(out),
        ],
    )
    small.main()
    report = json.loads(out.read_text())
    assert report['threads'] == torch.get_num_threads()
    assert all(row['ratio'] > 0 for row in report['figures'] if 'other' in row)
    if section == 'refinement':
        boxes = [row for row in report['figures'] if 'mean_shift_px' in row]
        assert len(boxes) == 3
        for row in boxes:
            assert row['max_difference_px'] < 1e-4 < row['mean_shift_px']
