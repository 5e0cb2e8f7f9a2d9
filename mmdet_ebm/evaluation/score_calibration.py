r"""Do scores say how often, and how well, detections are right?

Detections are sorted into bins of their scores.

- **D-ECE** asks whether a score is the probability that the detection is
  right. Over all classes together, with N detections and bins B,

  .. math:: \sum_B \frac{|B|}{N} |\text{share of hits in } B - \text{mean
     score of } B|

  where a hit is a match with an IoU of 0.5 or more.
- **LaECE**_0 asks whether a score is the IoU that is to be expected of the
  detection: in place of the share of hits it takes the mean IoU, 0 for a
  detection without a match; any IoU is a match. It is the mean over the
  classes.

Source: "Towards Building Self-Aware Object Detectors via Reliable Uncertainty
Quantification and Calibration" (CVPR 2023) and "On Calibration of Object
Detectors: Pitfalls, Evaluation and Baselines" (ECCV 2024), with the 25 bins of
their code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO

from .coco_matching import match_detections

_BINS = 25


@dataclass(frozen=True)
class ScoredMatches:
    """K detections that count, of one class or of several.

    Attributes:
        scores: (K,)
        ious: (K,) with the annotation of the match, 0 without one.
        hits: (K,) bool, whether there is a match.
    """

    scores: np.ndarray
    ious: np.ndarray
    hits: np.ndarray


def scored_matches(
    ground_truth: COCO, detections: Sequence[dict], min_iou: float
) -> list[ScoredMatches]:
    """Matches of each class that has annotations.

    Detections that match a crowd do not count.

    Args:
        ground_truth: The split.
        detections: COCO results.
        min_iou: Least IoU of a match.
    """
    matched = match_detections(ground_truth, detections, [min_iou])
    ids = ground_truth.getAnnIds(iscrowd=False)
    annotated = {each['category_id'] for each in ground_truth.loadAnns(ids)}
    parts: dict[int, list[ScoredMatches]] = {key: [] for key in annotated}
    for found in filter(None, matched.evalImgs):
        image, category = found['image_id'], found['category_id']
        if category not in annotated or not found['dtIds']:
            continue
        truth = [each['id'] for each in matched._gts[image, category]]
        match = found['dtMatches'][0]
        hits = match > 0
        ious = np.zeros(len(hits))
        columns = [truth.index(each) for each in match[hits]]
        if columns:
            ious[hits] = matched.ious[image, category][hits, columns]
        counts = ~found['dtIgnore'][0]
        parts[category].append(
            ScoredMatches(
                np.array(found['dtScores'])[counts], ious[counts], hits[counts]
            )
        )
    return [joined(parts[category]) for category in sorted(parts)]


def joined(parts: Sequence[ScoredMatches]) -> ScoredMatches:
    """All detections together."""
    empty = ScoredMatches(np.zeros(0), np.zeros(0), np.zeros(0, bool))
    return ScoredMatches(
        *(
            np.concatenate([getattr(part, name) for part in (empty, *parts)])
            for name in ('scores', 'ious', 'hits')
        )
    )


def binned_error(scores: np.ndarray, values: np.ndarray) -> float:
    """Mean distance of the means of scores and values in bins of the scores.

    Args:
        scores: (K,) in [0, 1]; a score on an edge belongs to the lower bin.
        values: (K,) what scores should be.

    Returns:
        Weighted by the detections of the bins; NaN without any.
    """
    if len(scores) == 0:
        return float('nan')
    edges = np.linspace(0, 1, _BINS + 1)[1:-1]
    bins = np.digitize(scores, edges, right=True)
    gaps = np.bincount(bins, scores - values, _BINS)
    return float(np.abs(gaps).sum() / len(scores))


def detection_ece(ground_truth: COCO, detections: Sequence[dict]) -> float:
    """D-ECE, as a fraction."""
    every = joined(scored_matches(ground_truth, detections, 0.5))
    return binned_error(every.scores, every.hits)


def localisation_aware_ece(
    ground_truth: COCO, detections: Sequence[dict]
) -> float:
    """LaECE_0, as a fraction: a mean over classes with detections."""
    classes = scored_matches(ground_truth, detections, 0.0)
    errors = [binned_error(each.scores, each.ious) for each in classes]
    known = [error for error in errors if error == error]
    return float(np.mean(known)) if known else float('nan')
