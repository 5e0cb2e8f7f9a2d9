"""Evaluation: importing this package registers the metrics with mmdet."""

from ..environment import require_mmdet

require_mmdet()


from .bootstrap import MatchedDetections, bootstrap_differences
from .coco_ap90 import CocoAP90Metric
from .sot_metric import SOTMetric
from .track_density_fit import TrackerFit, fit_tracker

__all__ = [
    'CocoAP90Metric',
    'MatchedDetections',
    'SOTMetric',
    'TrackerFit',
    'bootstrap_differences',
    'fit_tracker',
]
