"""Evaluation of single-object tracking inside mmdet's loops."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric

from ..tracking import bootstrap_interval, evaluate_boxes, mean_figures


@METRICS.register_module()
class SOTMetric(BaseMetric):
    """One-pass evaluation; see :mod:`mmdet_ebm.tracking.figures`.

    A sample is a frame of a sequence: ``video_name`` and ``frame_id`` in its
    meta information, the tracker's box as the first of ``pred_instances`` and
    the true one as the first of ``gt_instances``, both in pixels of the frame.
    An absent target has no true box. The frames may come in any order.

    Results are in per cent, means over sequences: ``sot/AUC``,
    ``sot/precision``, ``sot/norm_precision``, and the ends of the 95 %
    bootstrap interval of the AUC, ``sot/AUC_low`` and ``sot/AUC_high``.

    Args:
        collect_device: mmengine's.
    """

    default_prefix = 'sot'

    def __init__(self, collect_device: str = 'cpu') -> None:
        super().__init__(collect_device)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Take in a batch of frames."""
        for sample in data_samples:
            boxes = [
                _first_box(sample[field])
                for field in ('pred_instances', 'gt_instances')
            ]
            self.results.append(
                (sample['video_name'], sample['frame_id'], *boxes)
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Figures of all frames that were taken in."""
        tracks = defaultdict(dict)
        for name, frame, predicted, truth in results:
            tracks[name][frame] = predicted, truth
        figures = []
        for _, track in sorted(tracks.items()):
            pairs = np.array([track[frame] for frame in sorted(track)])
            figures.append(evaluate_boxes(pairs[:, 0], pairs[:, 1]))
        mean = mean_figures(figures)
        low, high = bootstrap_interval([each.auc for each in figures])
        return dict(
            AUC=100 * mean.auc,
            AUC_low=100 * low,
            AUC_high=100 * high,
            precision=100 * mean.precision,
            norm_precision=100 * mean.norm_precision,
        )


def _first_box(instances: dict) -> np.ndarray:
    """(4,) corners; NaN without a box."""
    boxes = instances['bboxes']
    if len(boxes) == 0:
        return np.full(4, np.nan)
    return np.asarray(boxes[0].cpu(), float)
