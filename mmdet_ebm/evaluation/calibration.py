r"""Do predicted standard deviations of box sides agree with actual errors?

For a matched detection, the error e of a side is the detection's coordinate
minus the annotation's, and s the predicted standard deviation. If s is right
and errors are Gaussian, z = e / s is standard normal: a share p of the errors
lies within the central interval of probability p, and the negative
log-likelihood :math:`\tfrac{1}{2} z^2 + \log s + \tfrac{1}{2} \log 2 \pi` is
smallest. Lengths are relative to the box, so that large and small boxes count
alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, spearmanr

LEVELS = (0.5, 0.8, 0.9, 0.95)
_FINE_LEVELS = np.linspace(0.05, 0.95, 19)


def match_to_truth(
    overlaps: np.ndarray, scores: np.ndarray, min_iou: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Pair detections with annotations of their class, as COCO does.

    Detections choose in the order of their scores, the highest first. Each
    takes the annotation that it overlaps most and that is still free.

    Args:
        overlaps: (K, G) IoU, 0 where the classes differ.
        scores: (K,) class scores.
        min_iou: Least IoU of a pair.

    Returns:
        Rows and columns of the pairs.
    """
    overlaps = overlaps.copy()
    pairs = []
    for row in np.argsort(-scores, kind='stable') if overlaps.size else ():
        column = int(overlaps[row].argmax())
        if overlaps[row, column] >= min_iou:
            pairs.append((row, column))
            overlaps[:, column] = -1
    rows, columns = np.array(pairs, int).reshape(-1, 2).T
    return rows, columns


@dataclass(frozen=True)
class SideErrors:
    """Errors of the sides of K matched detections, relative to their boxes.

    Attributes:
        error: (K, 4) detection minus annotation, for x1, y1, x2, y2, over the
            detection's width or height.
        std: (K, 4) predicted standard deviations, in the same units; NaN if
            unknown.
    """

    error: np.ndarray
    std: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """(K,) bool, where there is a prediction."""
        return (np.isfinite(self.std) & (self.std > 0)).all(1)


def half_widths(
    levels: Sequence[float], reference: SideErrors | None = None
) -> np.ndarray:
    """How many deviations a central interval reaches to either side.

    Args:
        levels: Probabilities of the intervals.
        reference: Other errors, whose quantiles are taken; by default those
            of a Gaussian. Errors have heavier tails than a Gaussian, which no
            factor of the deviations can change.
    """
    if reference is None:
        return norm.ppf((1 + np.asarray(levels)) / 2)
    return np.quantile(_absolute_z(reference), levels)


def coverage(
    errors: SideErrors,
    levels: Sequence[float],
    reference: SideErrors | None = None,
) -> np.ndarray:
    """Share of errors within the central intervals of :func:`half_widths`."""
    z = _absolute_z(errors)
    bounds = half_widths(levels, reference)
    return np.array([(z <= bound).mean() for bound in bounds])


def _absolute_z(errors: SideErrors) -> np.ndarray:
    known = errors.known
    return np.abs(errors.error[known] / errors.std[known])


def negative_log_likelihood(errors: SideErrors) -> float:
    """Mean over sides, of Gaussians in relative units."""
    known = errors.known
    error, std = errors.error[known], errors.std[known]
    return float(-norm.logpdf(error, scale=std).mean())


def calibration(
    errors: SideErrors, reference: SideErrors | None = None
) -> dict:
    """Measure how well predicted deviations agree with errors.

    Args:
        errors: Of a split.
        reference: Of another split, for the intervals; see
            :func:`half_widths`.

    Returns:
        ``matched`` detections, ``unknown`` ones among them, and, if any is
        known: ``coverage`` by level in percent; ``calibration_error``, the
        mean distance of coverage from the level over 0.05 to 0.95; ``nll``;
        ``z_rms``, which should be 1; ``std_median``, relative to the box;
        ``rank_correlation`` (Spearman) of predicted deviation and size of the
        error over all sides, None for a constant deviation. A high one means
        that the model knows which sides are worse.
    """
    known = errors.known
    error, std = errors.error[known], errors.std[known]
    found = dict(matched=len(known), unknown=int((~known).sum()))
    if not known.any():
        return found
    fine = coverage(errors, _FINE_LEVELS, reference)
    correlation = None
    if len(np.unique(std)) > 1:  # a constant has no ranks
        ranks = spearmanr(std.ravel(), np.abs(error).ravel())
        correlation = float(ranks.statistic)
    return dict(
        found,
        coverage={
            f'{100 * level:g}': float(share)
            for level, share in zip(
                LEVELS, coverage(errors, LEVELS, reference)
            )
        },
        calibration_error=float(np.abs(fine - _FINE_LEVELS).mean()),
        nll=negative_log_likelihood(errors),
        z_rms=float(np.sqrt(np.mean((error / std) ** 2))),
        std_median=float(np.median(std)),
        rank_correlation=correlation,
    )


def constant_std(error: np.ndarray) -> np.ndarray:
    """(4,) the constant deviation of each side that fits errors (K, 4) best.

    It costs nothing, so predicted deviations should be better than it.
    """
    return np.sqrt(np.mean(error**2, axis=0))
