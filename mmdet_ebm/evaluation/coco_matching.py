"""Detections and annotations, matched as COCO does."""

import contextlib
import copy
import io
from collections.abc import Iterable, Sequence

import numpy as np
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def coco_results(
    image_id: int,
    instances: InstanceData,
    cat_ids: Sequence[int] | None = None,
) -> list[dict]:
    """Detections of one image in COCO's result format.

    Args:
        image_id: Of the image.
        instances: ``bboxes``, ``scores`` and ``labels``.
        cat_ids: The category of each label; by default the label itself.
    """
    found = instances.cpu()
    return [
        dict(
            image_id=image_id,
            score=score,
            category_id=label if cat_ids is None else cat_ids[label],
            bbox=[x1, y1, x2 - x1, y2 - y1],
        )
        for (x1, y1, x2, y2), score, label in zip(
            found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist()
        )
    ]


def part_of(content: dict, image_ids: Iterable[int]) -> dict:
    """COCO annotations of some images; the rest of the file as it is."""
    wanted = set(image_ids)
    return dict(
        content,
        images=[x for x in content['images'] if x['id'] in wanted],
        annotations=[
            x for x in content['annotations'] if x['image_id'] in wanted
        ],
    )


def match_detections(
    ground_truth: COCO,
    detections: Sequence[dict],
    iou_thresholds: Sequence[float] | None = None,
    by_class: bool = True,
) -> COCOeval:
    """COCO's evaluation of boxes of all sizes, matched and not summed up.

    Args:
        ground_truth: The split.
        detections: COCO results: ``image_id``, ``category_id``, ``bbox`` and
            ``score`` of each; at most 100 for an image count.
        iou_thresholds: Least IoU of a match; by default COCO's ten.
        by_class: Whether only boxes of the same class match; else classes
            are ignored.
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
        params.useCats = int(by_class)
        if iou_thresholds is not None:
            params.iouThrs = np.array(iou_thresholds)
        matched.evaluate()
    return matched
