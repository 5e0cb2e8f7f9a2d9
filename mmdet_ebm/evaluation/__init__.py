"""Evaluation: importing this package registers the metrics with mmdet."""

from ..environment import require_mmdet

require_mmdet()


from .bootstrap import MatchedDetections, bootstrap_differences
from .coco_ap90 import CocoAP90Metric

__all__ = ['CocoAP90Metric', 'MatchedDetections', 'bootstrap_differences']
