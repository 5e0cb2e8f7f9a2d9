"""COCO evaluation that also reports AP at IoU 0.90."""

from collections import OrderedDict

import numpy as np
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS


@METRICS.register_module()
class CocoAP90Metric(CocoMetric):
    """mmdet's ``CocoMetric`` plus ``bbox_mAP_90``.

    Refinement improves localisation, which shows most at strict IoU
    thresholds; COCO's summary stops at AP75. Arguments are those of
    ``CocoMetric``; AP90 is added whenever ``'bbox'`` is among the metrics.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._strict = None
        if 'bbox' in self.metrics and not self.format_only:
            strict = dict(kwargs, metric='bbox', iou_thrs=np.array([0.9]),
                          outfile_prefix=None,
                          metric_items=['mAP'], classwise=False)
            self._strict = CocoMetric(*args, **strict)

    def compute_metrics(self, results: list) -> OrderedDict:
        """Compute COCO's metrics and AP90 from the processed results."""
        metrics = super().compute_metrics(results)
        if self._strict is not None:
            self._strict.dataset_meta = self.dataset_meta
            strict = self._strict.compute_metrics(results)
            if 'bbox_mAP' in strict:
                metrics['bbox_mAP_90'] = strict['bbox_mAP']
        return metrics
