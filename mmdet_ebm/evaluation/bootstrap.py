"""COCO AP on resampled images, for intervals of differences between systems.

COCO's matching runs once. A resample gives each image a weight, and precision
and recall are summed up with the weights, for many resamples at once.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor
from tqdm import tqdm

from .coco_matching import match_detections

METRICS = ('AP', 'AP50', 'AP75', 'AP90')
# Weights of detections at once; the sums stay in the caches.
_WEIGHTS = 2**20


@dataclass(frozen=True)
class _MatchedClass:
    """Detections of one class by falling score, matched at T thresholds.

    Attributes:
        images: (D,) the position of each one's image.
        counts: (T, D) whether it counts, as right or as wrong.
        right: (T, D) whether it is matched.
        objects: (I,) annotations of each image.
    """

    images: Tensor
    counts: Tensor
    right: Tensor
    objects: Tensor

    def mean_precisions(self, weights: Tensor, recalls: Tensor) -> Tensor:
        """(B, T) means over the recalls (R,), with weights (B, I) of images;
        NaN without an object."""
        objects = weights @ self.objects
        of_detections = weights[:, self.images]
        means = []
        for counts, right in zip(self.counts, self.right):
            at = right.nonzero()[:, 0]  # recall rises nowhere else
            found = of_detections[:, at].cumsum(1)
            shown = (of_detections * counts).cumsum(1)[:, at]
            # COCO's own guard against 0 / 0.
            precision = found / (shown + np.spacing(1))
            best = precision.flip(1).cummax(1).values.flip(1)
            best = torch.cat([best, best.new_zeros(len(best), 1)], 1)
            recall = found / objects[:, None]
            wanted = recalls.expand(len(recall), -1).contiguous()
            index = torch.searchsorted(recall.contiguous(), wanted)
            means.append(best.gather(1, index).mean(1))
        return torch.where(
            objects[:, None] > 0, torch.stack(means, 1), torch.nan
        )


class MatchedDetections:
    """One system's detections, matched to the ground truth of a split.

    Args:
        ground_truth: The split.
        detections: COCO results: ``image_id``, ``category_id``, ``bbox`` and
            ``score`` of each; at most 100 for an image count.
        by_class: Whether AP is the mean over the classes. Else classes are
            ignored and all objects count alike, which is less noisy where
            many classes have few objects.

    Attributes:
        image_ids: Of the split, in order.
    """

    def __init__(
        self,
        ground_truth: COCO,
        detections: Sequence[dict],
        by_class: bool = True,
    ) -> None:
        self._eval = match_detections(
            ground_truth, detections, by_class=by_class
        )
        self.image_ids = list(self._eval.params.imgIds)

    def average_precision(self) -> dict[str, float]:
        """AP, AP50, AP75 and AP90 as fractions, by COCO's own summing up."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._eval.accumulate()
        # (IoU thresholds, recalls, classes, 1, 1); -1 where a class is absent.
        precision = self._eval.eval['precision'][..., 0, 0]
        precision = np.where(precision > -1, precision, np.nan)
        means = torch.from_numpy(precision.mean(1).T)  # (classes, thresholds)
        return dict(zip(METRICS, self._metrics(means[:, None])[0].tolist()))

    def average_precisions(self, weights: np.ndarray) -> np.ndarray:
        """The same (B, 4) in the order of ``METRICS``, for B resamples.

        Args:
            weights: (B, I) how often each image counts.
        """
        weights = torch.from_numpy(np.asarray(weights, dtype=float))
        recalls = torch.from_numpy(self._eval.params.recThrs)
        classes = list(self._classes())
        largest = max([1, *(len(each.images) for each in classes)])
        parts = weights.split(max(1, _WEIGHTS // largest))
        found = []
        for part in parts:
            means = [each.mean_precisions(part, recalls) for each in classes]
            found.append(self._metrics(torch.stack(means)))
        return torch.cat(found).numpy()

    def _metrics(self, means: Tensor) -> Tensor:
        """(B, 4) from means over recalls (classes, B, thresholds)."""
        of_thresholds = means.nanmean(0)
        percent = np.round(100 * self._eval.params.iouThrs)
        columns = [of_thresholds.mean(1)]
        for wanted in (50, 75, 90):
            index = int(np.flatnonzero(percent == wanted)[0])
            columns.append(of_thresholds[:, index])
        return torch.stack(columns, 1)

    def _classes(self) -> Iterator[_MatchedClass]:
        number = len(self._eval.params.iouThrs)
        images = len(self.image_ids)
        for start in range(0, len(self._eval.evalImgs), images):
            found = [
                (i, each)
                for i, each in enumerate(
                    self._eval.evalImgs[start : start + images]
                )
                if each is not None
            ]
            objects = np.zeros(images)
            scores, owners = np.zeros(0), np.zeros(0, int)
            matches = ignored = np.zeros((number, 0), bool)
            if found:
                for i, each in found:
                    objects[i] = np.sum(np.asarray(each['gtIgnore']) == 0)
                scores = np.concatenate([e['dtScores'] for _, e in found])
                owners = np.repeat(
                    [i for i, _ in found],
                    [len(e['dtScores']) for _, e in found],
                )
                matches, ignored = (
                    np.concatenate([e[key] for _, e in found], 1).astype(bool)
                    for key in ('dtMatches', 'dtIgnore')
                )
            order = np.argsort(-scores, kind='stable')
            yield _MatchedClass(
                torch.from_numpy(owners[order]),
                torch.from_numpy(~ignored[:, order]).double(),
                torch.from_numpy((matches & ~ignored)[:, order]),
                torch.from_numpy(objects),
            )


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
    images = len(ids)
    weights = np.stack(
        [
            np.bincount(rng.integers(images, size=images), minlength=images)
            for _ in range(num_resamples)
        ]
    )
    bar = tqdm(desc='bootstrap', total=len(runs), disable=None)

    def resampled(run: MatchedDetections) -> np.ndarray:
        found = run.average_precisions(weights)
        bar.update()
        return found

    # (systems, metrics), and (resamples, systems, metrics).
    observed = np.array(
        [
            np.mean(
                [list(run.average_precision().values()) for run in group], 0
            )
            for group in systems.values()
        ]
    )
    draws = np.stack(
        [
            np.mean([resampled(run) for run in group], 0)
            for group in systems.values()
        ],
        1,
    )
    bar.close()
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
