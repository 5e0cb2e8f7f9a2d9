r"""Fit the probability that a detection shows an object of its class.

A logistic regression on held-out detections: which of them match an
annotation, by class score, count and mass of the cluster. A small penalty
pulls the weights to those of the class score alone, so that a few detections,
or ones that are all right, give no wild weights.
"""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import InstanceList
from mmengine.structures import InstanceData
from scipy.optimize import minimize
from torch import Tensor

from ..core import CLASS_SCORE_ALONE, object_features

# Of the squared distance from the class score alone, beside the sum of the
# log-losses of all detections.
_PENALTY = 1.0


def object_evidence(
    instances: InstanceList, samples: SampleList, matched: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What the detections of a batch tell about the worth of clusters.

    Args:
        instances: Detections of each image, in network-input pixels; of a
            detector with clusters they have ``cluster_support``.
        samples: With what is ignored, in original-image pixels.
        matched: Rows that match an annotation, see ``matched_rows``.

    Returns:
        Class scores (R,), ``cluster_support`` (R, 2), and whether detections
        match (R,). Those in a region that is marked as crowd or ignored are
        left out. An empty list without clusters.
    """
    if not all('cluster_support' in each for each in instances):
        return []
    scores = torch.cat([each.scores for each in instances])
    support = torch.cat([each.cluster_support for each in instances])
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[matched] = True
    known = right | ~torch.cat(list(map(_in_ignored, instances, samples)))
    return [tuple(each[known].cpu() for each in (scores, support, right))]


def fit_object_weights(
    evidence: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> dict[str, float]:
    """Weights of largest likelihood, with a small penalty.

    Args:
        evidence: From :func:`object_evidence`.

    Returns:
        ``object_score``, ``object_count``, ``object_mass`` and
        ``object_bias``; those of the class score alone without evidence.
    """
    if not evidence:
        return dict(CLASS_SCORE_ALONE)
    scores, support, right = (torch.cat(each) for each in zip(*evidence))
    features = object_features(scores.double(), support.double()).numpy()
    target = right.double().numpy()
    usual = np.array(list(CLASS_SCORE_ALONE.values()))

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = features @ weights
        away = weights - usual
        loss = (np.logaddexp(0, odds) - target * odds).sum()
        gradient = features.T @ (np.exp(-np.logaddexp(0, -odds)) - target)
        return (
            loss + 0.5 * _PENALTY * (away @ away),
            gradient + _PENALTY * away,
        )

    found = minimize(loss_and_gradient, usual, jac=True, method='L-BFGS-B')
    return dict(zip(CLASS_SCORE_ALONE, found.x.tolist()))


def _in_ignored(found: InstanceData, sample: DetDataSample) -> Tensor:
    """Whether boxes (K,) lie in a region of their class that is ignored, with
    half of their area or more."""
    ignored = sample.get('ignored_instances')
    if ignored is None:
        return torch.zeros_like(found.labels, dtype=torch.bool)
    boxes = get_box_tensor(found.bboxes)
    scale = boxes.new_tensor(sample.metainfo.get('scale_factor', (1.0, 1.0)))
    regions = get_box_tensor(ignored.bboxes).to(boxes) * scale.repeat(2)
    share = bbox_overlaps(boxes, regions, mode='iof')
    same = found.labels[:, None] == ignored.labels.to(found.labels)
    return ((share >= 0.5) & same).any(1)
