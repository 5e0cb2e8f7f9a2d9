"""The share of IoU thresholds that a box passes."""

import pytest
import torch

from mmdet_ebm.core import quality, side_iou
from mmdet_ebm.ops import boxes_to_sides


def test_quality_is_the_mean_over_the_thresholds_of_coco():
    assert quality(torch.tensor([0.45, 0.7, 0.95, 0.2])).tolist() == (
        pytest.approx([0, 0.5, 1, 0])
    )


def test_iou_of_sides_is_that_of_their_boxes():
    unit = torch.tensor([0.0, 0, 1, 1])
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.5, 0, 1.5, 1], [2, 2, 3, 3]])
    sides = boxes_to_sides(boxes, unit).T[None]  # (1, 4, 3)
    placed = torch.zeros(1, 4, 1)
    torch.testing.assert_close(
        side_iou(placed, sides), torch.tensor([[1, 1 / 3, 0]])
    )
