"""Non-maximum suppression ordered by how well boxes fit."""

import torch
from mmcv.ops import batched_nms
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor


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


def competing(boxes: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes may suppress another or be suppressed, whatever their order.

    Args:
        boxes: (R, 4) corners of one image.
        labels: (R,) classes.
        iou_threshold: As in :func:`energy_nms`.

    Returns:
        (R,) bool.
    """
    # The NMS computes overlaps in another way: a margin for its rounding.
    meets = (bbox_overlaps(boxes, boxes) > iou_threshold - 1e-3) & (
        labels[:, None] == labels[None]
    )
    return meets.sum(1) > 1  # itself is one
