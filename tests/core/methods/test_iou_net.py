"""IoU-Net's training: relative IoU, balanced jitter, regression target."""

import math

import pytest
import torch
from mmdet.structures.bbox import bbox_overlaps as box_iou

from mmdet_ebm.core import IoUNet, relative_iou
from mmdet_ebm.core.methods.iou_net import jitter_of_iou
from mmdet_ebm.ops import relative_to_boxes

REFERENCE = torch.tensor([[20.0, 30, 70, 55]], dtype=torch.float64)


def test_relative_iou_is_the_iou_of_the_boxes():
    offsets = torch.randn(500, 4, dtype=torch.float64) * 0.6
    boxes = relative_to_boxes(offsets, REFERENCE)
    torch.testing.assert_close(
        relative_iou(offsets), box_iou(REFERENCE, boxes)[0]
    )


def test_jitter_has_the_wanted_iou_in_every_direction():
    wanted = 0.01 + 0.99 * torch.rand(20_000)
    direction = torch.randn(20_000, 4)
    direction[:8] = torch.cat([torch.eye(4), -torch.eye(4)])
    offsets = jitter_of_iou(wanted, direction)
    assert (relative_iou(offsets) - wanted).abs().max() < 1e-4
    # Along the direction, not against it.
    assert ((offsets * direction).sum(-1) >= 0).all()


def test_jittered_boxes_are_balanced_by_iou():
    """Ten equal bins of IoU in [0.5, 1]; chi-square at 1e-6, 9 degrees."""
    seen = []
    IoUNet(50_000)(lambda y: seen.append(y) or y.sum(-1), torch.zeros(1, 4))
    counts = torch.histc(relative_iou(seen[0]), 10, 0.5, 1.0)
    assert counts.sum() == 50_000
    chi_square = ((counts - 5000).square() / 5000).sum()
    assert chi_square < 45.1


def test_a_perfect_prediction_costs_nothing():
    """For targets away from the reference's own coordinates, too."""
    targets = torch.randn(3, 4, dtype=torch.float64) * 0.3
    boxes = relative_to_boxes(targets, REFERENCE)

    def perfect(y):
        candidates = relative_to_boxes(y, REFERENCE)
        iou = torch.stack(
            [box_iou(boxes[i : i + 1], candidates[i])[0] for i in range(3)]
        )
        return 4 * iou - 3  # [0.5, 1] to [-1, 1]

    losses, _ = IoUNet(64)(perfect, targets)
    assert losses.max() < 1e-9


def test_smooth_l1_of_a_constant_prediction():
    """Label uniform in [-1, 1], f = 0: E[u^2 / 2] = 1 / 6.

    Standard deviation of u^2 / 2 is 0.149; 5 errors of 40,000 samples.
    """
    loss, _ = IoUNet(40_000)(lambda y: 0 * y.sum(-1), torch.zeros(1, 4))
    assert abs(loss.item() - 1 / 6) < 5 * 0.149 / math.sqrt(40_000)


@pytest.mark.parametrize('arguments', [(0, 0.5), (8, 1.0), (8, 0.0)])
def test_invalid_settings_are_refused(arguments):
    with pytest.raises(ValueError, match='num_samples|min_iou'):
        IoUNet(*arguments)


def test_targets_must_be_boxes():
    with pytest.raises(ValueError, match=r'\(N, 4\)'):
        IoUNet(8)(lambda y: y.sum(-1), torch.zeros(2, 3))
