"""COCO evaluation with AP at IoU 0.90 and the gain by refinement."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.logging import print_log


@METRICS.register_module()
class CocoAP90Metric(CocoMetric):
    """mmdet's ``CocoMetric`` with ``bbox_mAP_90`` and the gain by refinement.

    Refinement improves localisation. This shows most at strict IoU
    thresholds, but COCO's summary stops at AP75. Arguments are those of
    ``CocoMetric``; AP90 is added if ``'bbox'`` is among the metrics.

    Samples may carry the detections without refinement
    (``Refinement.keep_plain``). Then these are evaluated too:
    ``bbox_mAP_plain`` is their AP, ``bbox_mAP_gain`` the difference, and both
    exist for AP90. A line of the log sums it up.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._arguments = args, kwargs
        self._strict = None
        if 'bbox' in self.metrics and not self.format_only:
            self._strict = self._another(
                CocoMetric, iou_thrs=np.array([0.9]), metric_items=['mAP']
            )

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """See ``CocoMetric.process``."""
        before = len(self.results)
        super().process(data_batch, data_samples)
        for (_, result), sample in zip(self.results[before:], data_samples):
            plain = sample.get('plain_instances')
            if plain is not None:
                result['plain'] = dict(
                    img_id=sample['img_id'],
                    **{
                        name: plain[name].cpu().numpy()
                        for name in ('bboxes', 'scores', 'labels')
                    },
                )

    def compute_metrics(self, results: list) -> OrderedDict:
        """Compute COCO's metrics and AP90 from the processed results."""
        metrics = super().compute_metrics(results)
        if self._strict is None:
            return metrics
        self._strict.dataset_meta = self.dataset_meta
        strict = self._strict.compute_metrics(results)
        if 'bbox_mAP' in strict:
            metrics['bbox_mAP_90'] = strict['bbox_mAP']
        plain = [
            (truth, result['plain'])
            for truth, result in results
            if 'plain' in result
        ]
        if plain and len(plain) == len(results):
            metrics.update(self._compare(metrics, plain))
        return metrics

    def _compare(self, refined: dict, plain: list) -> dict[str, float]:
        """AP of the plain detections, and the gain over it."""
        metric = self._another(CocoAP90Metric)
        metric.dataset_meta = self.dataset_meta
        # Nothing detected counts as 0, as in COCO's own table.
        figures = metric.compute_metrics(plain)
        found, texts = {}, []
        for key, name in (('bbox_mAP', 'AP'), ('bbox_mAP_90', 'AP90')):
            before, after = figures.get(key, 0.0), refined.get(key, 0.0)
            found[f'{key}_plain'] = before
            found[f'{key}_gain'] = round(after - before, 4)
            texts.append(
                f'{name} {100 * before:.1f} plain, '
                f'{100 * after:.1f} refined '
                f'({100 * (after - before):+.1f})'
            )
        print_log('; '.join(texts), logger='current')
        return found

    def _another(self, kind: type, **changes) -> CocoMetric:
        """A metric of the same arguments, for boxes only."""
        args, kwargs = self._arguments
        return kind(
            *args,
            **{
                **kwargs,
                'metric': 'bbox',
                'classwise': False,
                'outfile_prefix': None,
                **changes,
            },
        )
