"""Trackers refined by two models, and what is said of them."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config

from studies import refine_trackers
from tests.small_trackers import TRACKER, tracker_model
from tests.tracking.videos import write_lines, write_otb


@pytest.fixture
def arguments(tmp_path):
    cfg = Config(dict(default_scope='mmdet', model=TRACKER))
    cfg.custom_imports = dict(imports=['mmdet_ebm.models'])
    cfg.held_out = ['a']
    cfg.dump(tmp_path / 'config.py')
    model = tracker_model()
    checkpoints = []
    for seed in range(2):
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
        checkpoints.append(tmp_path / f'{seed}.pth')
        torch.save(dict(state_dict=model.state_dict()), checkpoints[-1])
    for split, name in (('train', 'a'), ('test', 'b'), ('test', 'c')):
        boxes = write_otb(tmp_path / 'data' / split, name, num_frames=4)
        shifted = boxes + [[0.0], [1], [2], [1]]
        write_lines(tmp_path / 'boxes/CSRT' / f'{name}.txt', shifted, 1)
    return [
        str(tmp_path / 'config.py'),
        *map(str, checkpoints),
        '--data',
        str(tmp_path / 'data'),
        '--boxes',
        str(tmp_path / 'boxes'),
        '--trackers',
        'CSRT',
        '--own',
        '--out',
        str(tmp_path / 'out'),
    ]


def test_all_seeds_and_rows_are_there_and_done_work_stays(
    arguments, tmp_path, monkeypatch, capsys
):
    refine_trackers.main(arguments)
    summary = json.loads((tmp_path / 'out/summary.json').read_text())
    assert list(summary['rows']) == [
        'CSRT',
        'CSRT, same centres',
        'EnergySOT instead of CSRT',
    ]
    row = summary['rows']['CSRT']
    assert len(row['after']) == 2 and len(row['held_out']) == 2
    low, high = row['interval'][0]
    assert low <= row['gain'][0] <= high
    np.testing.assert_allclose(
        row['gain'], np.mean(row['after'], 0) - row['before'], atol=1e-9
    )
    assert '| CSRT, same centres' in capsys.readouterr().out
    # A second run computes nothing.
    monkeypatch.setattr(refine_trackers, 'fit_tracker', None)
    monkeypatch.setattr(refine_trackers, 'build_tracking_model', None)
    refine_trackers.main(arguments)
    assert summary == json.loads((tmp_path / 'out/summary.json').read_text())


def test_boxes_get_other_centres_and_keep_their_size():
    boxes = np.array([[0.0, 0, 10, 20]])
    others = np.array([[50.0, 50, 54, 54]])
    moved = refine_trackers.with_centres(boxes, others)
    np.testing.assert_allclose(moved, [[47.0, 42, 57, 62]])
