"""Detections and annotations, matched as COCO does."""

import contextlib
import copy
import io
from collections.abc import Sequence

import numpy as np
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def coco_results(
    image_id: int, instances: InstanceData, cat_ids: Sequence[int]
) -> list[dict]:
    """Detections of one image in COCO's result format."""
    found = instances.cpu()
    return [
        dict(
            image_id=image_id,
            score=score,
            category_id=cat_ids[label],
            bbox=[x1, y1, x2 - x1, y2 - y1],
        )
        for (x1, y1, x2, y2), score, label in zip(
            found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist()
        )
    ]


def match_detections(
    ground_truth: COCO,
    detections: Sequence[dict],
    iou_thresholds: Sequence[float] | None = None,
) -> COCOeval:
    """COCO's evaluation of boxes of all sizes, matched and not summed up.

    Args:
        ground_truth: The split.
        detections: COCO results: ``image_id``, ``category_id``, ``bbox`` and
            ``score`` of each; at most 100 for an image count.
        iou_thresholds: Least IoU of a match; by default COCO's ten.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if detections:
            found = ground_truth.loadRes(copy.deepcopy(list(detections)))
        else:
            found = COCO()
            found.dataset = dict(ground_truth.dataset, annotations=[])
            found.createIndex()
        matched = COCOeval(ground_truth, found, 'bbox')
        params = matched.params
        params.areaRng, params.areaRngLbl = [params.areaRng[0]], ['all']
        params.maxDets = [100]
        if iou_thresholds is not None:
            params.iouThrs = np.array(iou_thresholds)
        matched.evaluate()
    return matched
