"""Data sets and transforms of tracking: importing this registers them."""

from ...environment import require_mmdet

require_mmdet()

from .datasets import DetPairDataset, SOTFolderDataset, SOTFrameDataset
from .transforms import CropPair, JitterPair, LoadPair, SamplePair

__all__ = [
    'CropPair',
    'DetPairDataset',
    'JitterPair',
    'LoadPair',
    'SOTFolderDataset',
    'SOTFrameDataset',
    'SamplePair',
]
