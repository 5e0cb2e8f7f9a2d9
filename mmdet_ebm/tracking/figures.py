r"""Figures of one-pass evaluation.

With :math:`o_t` the IoU of frame t and :math:`e_t` the distance of the
centres, over the frames in which the target is present:

- success AUC: the mean, over the 21 thresholds 0, 0.05, ... 1, of the share
  of frames with :math:`o_t > \tau`. An exact box does not pass 1, so perfect
  boxes have 20/21.
- precision: the share of frames with :math:`e_t \le 20` pixels.
- normalised precision: the mean, over the 51 thresholds 0, 0.01, ... 0.5, of
  the share of frames whose distance, in widths and heights of the true box,
  is at most :math:`\tau`.

Frames without the target count neither as hits nor as misses. (The LaSOT
toolkit marks them by an error of -1, which is below every threshold.) A frame
without a prediction is a miss.

Source: "Online Object Tracking: A Benchmark", CVPR 2013; "TrackingNet", ECCV
2018, arXiv 1803.10794, section 4; "LaSOT", CVPR 2019, arXiv 1809.07845.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

SUCCESS_THRESHOLDS = np.linspace(0, 1, 21)
NORMALISED_THRESHOLDS = np.linspace(0, 0.5, 51)
PRECISION_PIXELS = 20.0


@dataclass(frozen=True)
class SOTFigures:
    """Figures of a sequence, or their means; fractions.

    Attributes:
        auc: Success AUC.
        precision: Precision at 20 pixels.
        norm_precision: Normalised precision AUC.
    """

    auc: float
    precision: float
    norm_precision: float


def evaluate_boxes(predicted: np.ndarray, truth: np.ndarray) -> SOTFigures:
    """Figures of one sequence.

    Args:
        predicted: (T, 4) corners; NaN where there is no prediction.
        truth: (T, 4) corners; NaN where the target is absent.

    Raises:
        ValueError: If the numbers of frames differ, or no frame has a target.
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ValueError(
            f'expected a box for each of {len(truth)} frames, got '
            f'{len(predicted)}'
        )
    present = np.isfinite(truth).all(1)
    if not present.any():
        raise ValueError('the target is absent in every frame')
    predicted, truth = predicted[present], truth[present]
    size = truth[:, 2:] - truth[:, :2]
    shift = (
        predicted[:, :2] + predicted[:, 2:] - truth[:, :2] - truth[:, 2:]
    ) / 2
    error = np.linalg.norm(shift, axis=1)
    normalised = np.linalg.norm(shift / size, axis=1)

    def share(hits: np.ndarray) -> float:
        return float(hits.mean())

    # Comparisons with NaN are False: misses.
    return SOTFigures(
        share(box_overlaps(predicted, truth)[:, None] > SUCCESS_THRESHOLDS),
        share(error <= PRECISION_PIXELS),
        share(normalised[:, None] <= NORMALISED_THRESHOLDS),
    )


def box_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU (T,) of boxes (T, 4), row by row; NaN where one is."""
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    overlap = (high - low).clip(min=0).prod(1)
    areas = [
        (each[:, 2:] - each[:, :2]).clip(min=0).prod(1)
        for each in (first, second)
    ]
    union = areas[0] + areas[1] - overlap
    return overlap / np.where(union == 0, 1, union)


def mean_figures(figures: Sequence[SOTFigures]) -> SOTFigures:
    """Means over sequences, which count the same whatever their length."""
    means = np.mean([astuple(each) for each in figures], axis=0)
    return SOTFigures(*map(float, means))


def bootstrap_interval(
    values: np.ndarray,
    num_resamples: int = 10000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean over resampled sequences.

    Args:
        values: (N,) one for each sequence: a figure, or the difference of
            two trackers' figures on it.
        num_resamples: How often N sequences are drawn with replacement.
        confidence: Probability that the interval covers.
        seed: Of the draws.

    Returns:
        Lower and upper end.
    """
    values = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(values), size=(num_resamples, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[draws].mean(1), [tail, 1 - tail])
    return float(low), float(high)
