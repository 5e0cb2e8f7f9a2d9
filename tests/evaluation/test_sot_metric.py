"""The metric takes frames in any order and groups them by sequence."""

import numpy as np
import pytest
import torch

from mmdet_ebm.evaluation import SOTMetric
from mmdet_ebm.tracking import evaluate_boxes

TRUTH = torch.tensor([10.0, 20.0, 50.0, 40.0])


def frame(name, number, shift, present=True):
    truth = TRUTH[None] if present else torch.zeros(0, 4)
    return dict(
        video_name=name,
        frame_id=number,
        pred_instances=dict(bboxes=TRUTH[None] + shift),
        gt_instances=dict(bboxes=truth),
    )


def test_frames_are_grouped_by_sequence_in_any_order():
    metric = SOTMetric()
    frames = [frame('a', t, 3.0 * t) for t in range(4)]
    frames += [frame('b', t, 0.0) for t in range(2)]
    for t in (3, 5, 0, 4, 1, 2):
        metric.process({}, [frames[t]])
    found = metric.evaluate(6)
    a = evaluate_boxes(
        np.array([(TRUTH + 3.0 * t).numpy() for t in range(4)]),
        np.tile(TRUTH.numpy(), (4, 1)),
    )
    assert found['sot/AUC'] == pytest.approx(50 * (a.auc + 20 / 21))
    assert found['sot/AUC_low'] == pytest.approx(100 * a.auc)
    assert found['sot/precision'] == 100


def test_absent_frames_are_never_hits():
    metric = SOTMetric()
    metric.process({}, [frame('a', 0, 500.0), frame('a', 1, 0.0, False)])
    assert metric.evaluate(2)['sot/precision'] == 0
