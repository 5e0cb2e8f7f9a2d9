"""Precise RoI pooling and boxes, in plain PyTorch."""

from .boxes import (
    Boxes,
    boxes_to_relative,
    boxes_to_sides,
    clip_boxes,
    relative_to_boxes,
    repeat_rows,
    side_sizes,
    sides_to_boxes,
)
from .prroi_pool import FeaturePyramid, PrRoIPool, prroi_pool

__all__ = [
    'Boxes',
    'FeaturePyramid',
    'PrRoIPool',
    'boxes_to_relative',
    'boxes_to_sides',
    'clip_boxes',
    'prroi_pool',
    'relative_to_boxes',
    'repeat_rows',
    'side_sizes',
    'sides_to_boxes',
]
