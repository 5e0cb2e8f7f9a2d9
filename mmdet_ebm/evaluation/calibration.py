r"""Do predicted standard deviations of box sides agree with actual errors?

For a matched detection, the error e of a side is the detection's coordinate
minus the annotation's, and s the predicted standard deviation. If s is right
and errors are Gaussian, z = e / s is standard normal: a share p of the errors
lies within the central interval of probability p, and the negative
log-likelihood :math:`\tfrac{1}{2} z^2 + \log s + \tfrac{1}{2} \log 2 \pi` is
smallest. Lengths are taken relative to the box, so that large boxes do not
drown small ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import spearmanr

LEVELS = (0.5, 0.8, 0.9, 0.95)
_FINE_LEVELS = np.linspace(0.05, 0.95, 19)


def match_to_truth(
    overlaps: np.ndarray, scores: np.ndarray, min_iou: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Pair detections with annotations of their class, COCO's greedy way.

    By falling score, a detection takes the annotation that overlaps it most
    among those not taken.

    Args:
        overlaps: (K, G) IoU, 0 where the classes differ.
        scores: (K,) class scores.
        min_iou: Least IoU of a pair.

    Returns:
        Rows and columns of the pairs.
    """
    overlaps = overlaps.copy()
    pairs = []
    for row in np.argsort(-scores, kind='stable'):
        if overlaps.shape[1] == 0:
            break
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
        std: (K, 4) predicted standard deviations, likewise; NaN if unknown.
    """

    error: np.ndarray
    std: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """(K,) bool, where there is a prediction."""
        return (np.isfinite(self.std) & (self.std > 0)).all(1)


def coverage(errors: SideErrors, levels: Sequence[float]) -> np.ndarray:
    """Share of errors within the central intervals of given probability."""
    known = errors.known
    z = np.abs(errors.error[known] / errors.std[known])
    return np.array(
        [
            (z <= NormalDist().inv_cdf((1 + level) / 2)).mean()
            for level in levels
        ]
    )


def negative_log_likelihood(errors: SideErrors) -> float:
    """Mean over sides, of Gaussians in relative units."""
    known = errors.known
    error, std = errors.error[known], errors.std[known]
    return float(
        np.mean(0.5 * (error / std) ** 2 + np.log(std))
        + 0.5 * np.log(2 * np.pi)
    )


def calibration(errors: SideErrors) -> dict:
    """Figures of calibration.

    Returns:
        ``coverage`` by level; ``calibration_error``, the mean distance of
        coverage from the level over 0.05 to 0.95; ``nll``; ``z_rms``, 1 if
        right; ``std_median``, relative to the box; ``rank_correlation``
        (Spearman) of predicted deviation and size of the error, over all
        sides: whether it knows which sides are worse; ``matched`` and
        ``unknown`` detections.
    """
    known = errors.known
    error, std = errors.error[known], errors.std[known]
    found = dict(matched=len(known), unknown=int((~known).sum()))
    if not known.any():
        return found
    fine = coverage(errors, _FINE_LEVELS)
    # A constant, such as one deviation for all boxes, has no ranks.
    ranked = len(np.unique(std)) > 1
    return dict(
        found,
        coverage={
            f'{100 * level:g}': float(share)
            for level, share in zip(LEVELS, coverage(errors, LEVELS))
        },
        calibration_error=float(np.abs(fine - _FINE_LEVELS).mean()),
        nll=negative_log_likelihood(errors),
        z_rms=float(np.sqrt(np.mean((error / std) ** 2))),
        std_median=float(np.median(std)),
        rank_correlation=float(
            spearmanr(std.ravel(), np.abs(error).ravel()).statistic
        )
        if ranked
        else None,
    )


def fit_temperature(
    temperatures: Sequence[float], stds: np.ndarray, error: np.ndarray
) -> float:
    """The temperature of least negative log-likelihood.

    Args:
        temperatures: (T,) increasing candidates.
        stds: (T, K, 4) deviations under each.
        error: (K, 4) errors, in the same units.

    Returns:
        The best, between the candidates by a parabola in log T.

    Raises:
        ValueError: If the best is the first or last candidate.
    """
    # The same boxes for all.
    known = (np.isfinite(stds) & (stds > 0)).all((0, 2))
    losses = np.array(
        [
            negative_log_likelihood(SideErrors(error[known], std[known]))
            for std in stds
        ]
    )
    best = int(losses.argmin())
    if not 0 < best < len(losses) - 1:
        raise ValueError(
            f'the best temperature is {temperatures[best]:g}, at the end of '
            f'the range from {temperatures[0]:g} to {temperatures[-1]:g}'
        )
    x = np.log(np.asarray(temperatures)[best - 1 : best + 2])
    curve = np.polyfit(x - x[1], losses[best - 1 : best + 2], 2)
    return float(np.exp(x[1] - curve[1] / (2 * curve[0])))


def constant_std(error: np.ndarray) -> np.ndarray:
    """(4,) the one deviation of each side that fits errors (K, 4) best.

    What a predicted deviation must beat: it costs nothing.
    """
    return np.sqrt(np.mean(error**2, axis=0))
