"""The stages that follow a detector's boxes, in network-input pixels.

Candidates -> log-densities -> NMS ordered by them -> gradient ascent -> how
sure the boxes are.
"""

from dataclasses import dataclass

import torch
from mmcv.ops import batched_nms
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import ConfigType, InstanceList, OptConfigType
from mmengine.structures import InstanceData
from torch import Tensor

from ...ops import Boxes, FeaturePyramid
from ..energy_model import EnergyModel
from .box_sources import require_plain_nms

# Fields (K, 4) of results whose columns are along x, y, x, y, in pixels.
PIXEL_FIELDS = ('bboxes', 'initial_bboxes', 'box_std')


@dataclass(frozen=True)
class Refinement:
    """Which stages run at test time.

    Attributes:
        energy_nms: Order NMS by log-density rather than by class score.
        ascent: Move the final boxes uphill.
        nms_pre: Candidates (box and class above the score threshold) of an
            image that enter the energy-ordered NMS at most, by class score;
            -1 for all. It bounds time and memory where a detector is unsure of
            everything.
        uncertainty: Tell how sure the final boxes are: standard deviations of
            their sides and normalised log-densities.
        uncertainty_per_img: Boxes of an image for which to tell it at most,
            by class score; -1 for all. The others get NaN. With the default
            of samples it takes longer than the ascent.
        keep_plain: Also give what the detector finds by itself, as
            ``plain_instances`` of a sample, for a metric to compare with.
    """

    energy_nms: bool = True
    ascent: bool = True
    nms_pre: int = 1000
    uncertainty: bool = False
    uncertainty_per_img: int = 30
    keep_plain: bool = False

    @property
    def is_on(self) -> bool:
        """Whether any stage runs."""
        return self.energy_nms or self.ascent or self.uncertainty


def refine_detections(
    energy_model: EnergyModel,
    stages: Refinement,
    pyramid: FeaturePyramid,
    detections: InstanceList,
    test_cfg: OptConfigType = None,
) -> tuple[InstanceList, InstanceList | None]:
    """The stages, one after the other.

    Args:
        energy_model: What is asked about boxes.
        stages: Which stages run.
        pyramid: Of the batch's maps.
        detections: For each image ``bboxes`` (K, 4), ``scores`` (K,) and
            ``labels`` (K,). With the energy NMS on, all candidates above the
            score threshold, before any NMS.
        test_cfg: With ``nms`` and, perhaps, ``max_per_img``; needed by the
            energy NMS.

    Returns:
        New instances with the fields of ``detections`` and ``logdensities``
        (K,), after an ascent also ``initial_bboxes`` (K, 4), where it
        started; with ``uncertainty`` also ``box_std`` (K, 4), standard
        deviations of x1, y1, x2, y2, and ``box_logprobs`` (K,). Scores are
        class scores. Then, with ``keep_plain``, the detections without any
        stage.

    Raises:
        ValueError: If boxes are not of four corners, or the energy NMS is to
            replace an NMS of another kind.
    """
    plain = None
    if stages.keep_plain:
        nms_cfg = test_cfg if stages.energy_nms else None
        plain = [_plain(each, nms_cfg) for each in detections]
    if stages.energy_nms:
        detections = order_by_energy(
            energy_model, pyramid, detections, test_cfg, stages.nms_pre
        )
    if stages.ascent:
        detections = ascend(energy_model, pyramid, detections)
    if stages.uncertainty:
        detections = describe(
            energy_model, pyramid, detections, stages.uncertainty_per_img
        )
    return detections, plain


def order_by_energy(
    energy_model: EnergyModel,
    pyramid: FeaturePyramid,
    candidates: InstanceList,
    test_cfg: ConfigType,
    nms_pre: int,
) -> InstanceList:
    """NMS ordered by log-density, see :func:`energy_nms`.

    Args:
        energy_model: What is asked about boxes.
        pyramid: Of the batch's maps.
        candidates: Boxes, scores and labels of each image.
        test_cfg: With ``nms`` and ``max_per_img``.
        nms_pre: Candidates of an image at most.
    """
    threshold = require_plain_nms(test_cfg).iou_threshold
    candidates = [_best(c, nms_pre) for c in candidates]
    boxes = _table(candidates)
    logdensity = energy_model.logdensity(pyramid, boxes)
    results = []
    for candidate, (corners, values) in zip(
        candidates, boxes.split(boxes.corners, logdensity)
    ):
        keep, scores = energy_nms(
            corners,
            candidate.scores,
            candidate.labels,
            values,
            threshold,
            test_cfg.get('max_per_img', -1),
        )
        results.append(
            _with_fields(
                candidate[keep],
                bboxes=corners[keep],
                scores=scores,
                logdensities=values[keep],
            )
        )
    return results


def ascend(
    energy_model: EnergyModel,
    pyramid: FeaturePyramid,
    detections: InstanceList,
) -> InstanceList:
    """Gradient ascent from each box, see ``EnergyModel.refine``."""
    boxes = _table(detections)
    refined = energy_model.refine(pyramid, boxes)
    pieces = boxes.split(refined.corners, refined.logdensity, boxes.corners)
    return [
        _with_fields(
            detection,
            bboxes=corners,
            logdensities=logdensity,
            initial_bboxes=start,
        )
        for detection, (corners, logdensity, start) in zip(detections, pieces)
    ]


def describe(
    energy_model: EnergyModel,
    pyramid: FeaturePyramid,
    detections: InstanceList,
    number: int,
) -> InstanceList:
    """How sure boxes are, see ``EnergyModel.uncertainty``.

    Args:
        energy_model: What is asked about boxes.
        pyramid: Of the batch's maps.
        detections: Final boxes.
        number: Boxes of an image, by class score, that are looked at; -1 for
            all of them. The others get NaN.
    """
    chosen = [_best_rows(each, number) for each in detections]
    boxes = _table([each[rows] for each, rows in zip(detections, chosen)])
    known = energy_model.uncertainty(pyramid, boxes)
    results = []
    for detection, rows, (std, logprob) in zip(
        detections, chosen, boxes.split(known.std, known.logprob)
    ):
        unknown = std.new_full((len(detection), 4), torch.nan)
        results.append(
            _with_fields(
                detection,
                box_std=unknown.index_copy(0, rows, std),
                box_logprobs=unknown[:, 0].index_copy(0, rows, logprob),
            )
        )
    return results


def to_original_frame(instances: InstanceData, meta: dict) -> InstanceData:
    """Bring boxes from network-input to original-image pixels."""
    scale = meta['scale_factor']
    return _with_fields(
        instances,
        **{
            name: instances[name] / instances[name].new_tensor(scale).repeat(2)
            for name in PIXEL_FIELDS
            if name in instances
        },
    )


def energy_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    logdensity: Tensor,
    iou_threshold: float,
    max_per_img: int,
) -> tuple[Tensor, Tensor]:
    """Suppress duplicates of the box with the largest log-density.

    Within a class, boxes are visited from the largest log-density down; a kept
    box suppresses those it overlaps by more than ``iou_threshold`` and takes
    the largest class score of its cluster, itself included.

    Args:
        boxes: (R, 4) corners of one image.
        scores: (R,) class scores.
        labels: (R,) classes.
        logdensity: (R,) log-densities.
        iou_threshold: IoU above which boxes of a class are duplicates.
        max_per_img: Boxes to return at most; a negative number for all.

    Returns:
        Indices (K,) of the kept boxes, by falling cluster score, and the
        cluster scores (K,).

    Source: "Acquisition of Localization Confidence for Accurate Object
    Detection", ECCV 2018, arXiv 1807.11590, algorithm 1.
    """
    if boxes.numel() == 0:
        return labels.new_zeros(0), scores
    order = logdensity.nan_to_num(nan=-torch.inf)
    _, keep = batched_nms(
        boxes, order, labels, dict(type='nms', iou_threshold=iou_threshold)
    )
    # mmcv returns the kept boxes by falling log-density, so the first one that
    # overlaps a box is the one that suppressed it.
    joined = (bbox_overlaps(boxes[keep], boxes) > iou_threshold) & (
        labels[keep][:, None] == labels[None]
    )
    joined[torch.arange(len(keep), device=keep.device), keep] = True
    owner = joined.to(torch.uint8).argmax(0)
    # A kept box is its own cluster's, whatever it overlaps after rounding.
    owner[keep] = torch.arange(len(keep), device=keep.device)
    members = torch.where(joined.any(0), scores, -torch.inf)
    cluster_scores = torch.full_like(scores[keep], -torch.inf).scatter_reduce(
        0, owner, members, 'amax'
    )
    cluster_scores, rank = cluster_scores.sort(descending=True, stable=True)
    if max_per_img >= 0:
        cluster_scores, rank = cluster_scores[:max_per_img], rank[:max_per_img]
    return keep[rank], cluster_scores


def _plain(detections: InstanceData, test_cfg: OptConfigType) -> InstanceData:
    """The detector's own result: its NMS, where it has not run yet."""
    plain = InstanceData(
        bboxes=get_box_tensor(detections.bboxes),
        scores=detections.scores,
        labels=detections.labels,
    )
    if test_cfg is None or len(plain) == 0:
        return plain
    _, keep = batched_nms(
        plain.bboxes, plain.scores, plain.labels, require_plain_nms(test_cfg)
    )
    limit = test_cfg.get('max_per_img', -1)
    return plain[keep if limit < 0 else keep[:limit]]


def _best(candidates: InstanceData, number: int) -> InstanceData:
    if 0 <= number < len(candidates):
        return candidates[_best_rows(candidates, number)]
    return candidates


def _best_rows(instances: InstanceData, number: int) -> Tensor:
    """Rows of the largest class scores; all of them for -1."""
    count = len(instances)
    number = count if number < 0 else min(number, count)
    return instances.scores.topk(number).indices


def _table(detections: InstanceList) -> Boxes:
    return Boxes.from_images(
        [get_box_tensor(d.bboxes) for d in detections],
        [d.labels for d in detections],
    )


def _with_fields(instances: InstanceData, **fields: Tensor) -> InstanceData:
    return InstanceData(
        metainfo=instances.metainfo, **{**dict(instances.items()), **fields}
    )
