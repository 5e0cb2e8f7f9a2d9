"""COCO AP on resampled images, for intervals of differences between systems.

COCO's matching runs once. Only its accumulation runs for each resample of the
images, so a thousand resamples take seconds on a small set.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from tqdm import tqdm

from .coco_matching import match_detections

METRICS = ('AP', 'AP50', 'AP75', 'AP90')


class MatchedDetections:
    """One system's detections, matched to the ground truth of a split.

    Args:
        ground_truth: The split.
        detections: COCO results: ``image_id``, ``category_id``, ``bbox`` and
            ``score`` of each; at most 100 for an image count.
    """

    def __init__(self, ground_truth: COCO, detections: Sequence[dict]) -> None:
        self._eval = match_detections(ground_truth, detections)
        params = self._eval.params
        self.image_ids = list(params.imgIds)
        self._matches = np.array(self._eval.evalImgs, dtype=object).reshape(
            len(params.catIds), len(self.image_ids)
        )

    def average_precision(
        self, images: np.ndarray | None = None
    ) -> dict[str, float]:
        """AP, AP50, AP75 and AP90 as fractions.

        Args:
            images: Positions in ``image_ids``; one that is repeated counts
                as often as it occurs. None takes all images once.
        """
        if images is None:
            images = np.arange(len(self.image_ids))
        order = list(range(len(images)))  # as if all were different images
        self._eval.evalImgs = list(self._matches[:, images].reshape(-1))
        self._eval.params.imgIds = order
        self._eval._paramsEval.imgIds = order
        with contextlib.redirect_stdout(io.StringIO()):
            self._eval.accumulate()
        # (IoU thresholds, recalls, classes, 1, 1); -1 where a class is absent.
        precision = self._eval.eval['precision'][..., 0, 0]
        percent = np.round(100 * self._eval.params.iouThrs)

        def mean(values: np.ndarray) -> float:
            present = values[values > -1]
            return float(present.mean()) if present.size else float('nan')

        at = {f'AP{t}': mean(precision[percent == t]) for t in (50, 75, 90)}
        return dict(AP=mean(precision), **at)


def bootstrap_differences(
    systems: dict[str, Sequence[MatchedDetections]],
    pairs: Sequence[tuple[str, str]],
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Intervals of one system's mean AP minus another's.

    Images are drawn with replacement, the same ones for all runs. An interval
    holds the central ``confidence`` of the differences of the means over runs.
    It covers the choice of images, not the choice of seeds. It is somewhat too
    narrow on few images: of 518 simulations with 60 images, 90 % of the
    intervals of nominally 95 % held the true difference of AP90.

    Args:
        systems: Matched detections of each system's runs (seeds), all on the
            same split.
        pairs: Names (a, b), for the difference a - b.
        num_resamples: Resamples of the images.
        confidence: Probability that an interval covers.
        seed: Seed of the resampling.

    Returns:
        For each pair and metric ``difference``, ``low`` and ``high``, as
        fractions.

    Raises:
        ValueError: If the runs are not on the same images.
    """
    runs = [run for group in systems.values() for run in group]
    ids = runs[0].image_ids
    if any(run.image_ids != ids for run in runs):
        raise ValueError('all runs must be matched on the same images')
    rng = np.random.default_rng(seed)

    def means(images):
        """(systems, metrics)"""
        return [
            np.mean(
                [
                    list(run.average_precision(images).values())
                    for run in group
                ],
                axis=0,
            )
            for group in systems.values()
        ]

    observed = np.array(means(None))
    draws = np.array(
        [
            means(rng.integers(len(ids), size=len(ids)))
            for _ in tqdm(range(num_resamples), desc='bootstrap', disable=None)
        ]
    )
    tail = (1 - confidence) / 2
    row = {name: i for i, name in enumerate(systems)}
    result = {}
    for a, b in pairs:
        low, high = np.nanquantile(
            draws[:, row[a]] - draws[:, row[b]], [tail, 1 - tail], axis=0
        )
        difference = observed[row[a]] - observed[row[b]]
        result[a, b] = {
            m: dict(difference=float(d), low=float(lo), high=float(hi))
            for m, d, lo, hi in zip(METRICS, difference, low, high)
        }
    return result
