"""The tracker of our own on a generated video."""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmdet_ebm.models.trackers import CorrelationFilter
from tests.small_trackers import TRACKER
from tests.tracking.videos import moving_square


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 24, 32, generator=generator)


@pytest.mark.parametrize('shift', [(0, 0), (3, -2), (-5, 4)])
def test_the_filter_finds_how_far_its_target_moved(shift):
    found = CorrelationFilter()
    found.learn(features(), (0.4, 0.5))
    moved = features().roll((shift[1], shift[0]), (1, 2))
    cells, height = found.locate(moved)
    assert (cells - torch.tensor(shift)).abs().max() < 0.6
    _, elsewhere = found.locate(features(1))
    assert elsewhere < 0.6 * height


def test_the_filter_gets_used_to_a_new_look():
    found = CorrelationFilter(rate=0.3)
    found.learn(features(0), (0.4, 0.5))
    _, before = found.locate(features(1))
    for _ in range(10):
        found.learn(features(1), (0.4, 0.5))
    _, after = found.locate(features(1))
    assert after > before + 0.3


def test_a_filter_without_a_target_says_so():
    with pytest.raises(ValueError, match='no target'):
        CorrelationFilter().locate(features())


@pytest.fixture
def tracker():
    torch.manual_seed(0)
    # f is not asked: boxes keep their size and follow the filter.
    model = MODELS.build(dict(TRACKER, type='EnergySOT'))
    model.init_weights()
    model.energy_model.density.set_numbers(side_std=1e-4)
    model.eval()
    return model


def samples(boxes, corrupt=0.0):
    found = []
    for number, box in enumerate(boxes):
        sample = DetDataSample(metainfo=dict(frame_id=number))
        truth = box if number == 0 else box + corrupt
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(truth[None]).float()
        )
        found.append(sample)
    return found


def test_it_follows_the_square_and_never_reads_later_boxes(tracker):
    frames, boxes = moving_square()
    inputs = [torch.from_numpy(f).permute(2, 0, 1) for f in frames]
    runs = []
    for corrupt in (0.0, 300.0):
        data = dict(inputs=inputs, data_samples=samples(boxes, corrupt))
        runs.append(
            np.concatenate(
                [s.pred_instances.bboxes for s in tracker.test_step(data)]
            )
        )
    np.testing.assert_array_equal(runs[0], runs[1])
    centre = (runs[0][:, :2] + runs[0][:, 2:]) / 2
    truth = (boxes[:, :2] + boxes[:, 2:]) / 2
    # It moved 25 pixels in all.
    assert np.abs(centre - truth).max() < 6


def test_a_new_video_starts_anew(tracker):
    frames, boxes = moving_square(3)
    inputs = [torch.from_numpy(f).permute(2, 0, 1) for f in frames]
    twice = dict(
        inputs=inputs * 2, data_samples=samples(boxes) + samples(boxes)
    )
    found = [s.pred_instances.bboxes[0] for s in tracker.test_step(twice)]
    for first, second in zip(found[:3], found[3:]):
        torch.testing.assert_close(first, second)
