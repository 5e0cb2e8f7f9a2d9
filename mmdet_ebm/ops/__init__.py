"""Precise RoI pooling and the relative box space, in plain PyTorch."""

from .prroi_pool import FeatureSurface, PrRoIPool, prroi_pool
from .relative_boxes import boxes_to_relative, relative_to_boxes

__all__ = [
    'FeatureSurface',
    'PrRoIPool',
    'boxes_to_relative',
    'prroi_pool',
    'relative_to_boxes',
]
