"""Hand-made tracks, whose figures are known."""

import numpy as np
import pytest

from mmdet_ebm.tracking import (
    bootstrap_interval,
    box_overlaps,
    evaluate_boxes,
    mean_figures,
)

TRUTH = np.tile([10.0, 20.0, 50.0, 40.0], (8, 1)) + np.arange(8)[:, None]


def test_perfect_boxes_pass_every_threshold_but_the_last():
    figures = evaluate_boxes(TRUTH, TRUTH)
    assert figures.auc == pytest.approx(20 / 21)
    assert figures.precision == figures.norm_precision == 1


def test_a_shifted_box_has_the_figures_of_its_shift():
    # A quarter of the width: IoU 0.75 / 1.25 = 0.6.
    figures = evaluate_boxes(TRUTH + [10, 0, 10, 0], TRUTH)
    assert figures.auc == pytest.approx(12 / 21)  # 0, 0.05, ... 0.55
    assert figures.precision == 1
    assert figures.norm_precision == pytest.approx(26 / 51)  # 0.25, ... 0.5


def test_twenty_pixels_are_a_hit_and_more_are_a_miss():
    near, far = (
        evaluate_boxes(TRUTH + [0, d, 0, d], TRUTH) for d in (20, 20.1)
    )
    assert (near.precision, far.precision) == (1, 0)


def test_absent_frames_are_neither_hits_nor_misses():
    truth = TRUTH.copy()
    truth[::2] = np.nan
    wrong_where_present = np.where(np.isnan(truth), TRUTH, 500.0)
    figures = evaluate_boxes(wrong_where_present, truth)
    assert (figures.auc, figures.precision, figures.norm_precision) == (0,) * 3
    wrong_where_absent = np.where(np.isnan(truth), 500.0, TRUTH)
    assert evaluate_boxes(wrong_where_absent, truth).precision == 1


def test_a_frame_without_a_prediction_is_a_miss():
    predicted = TRUTH.copy()
    predicted[:2] = np.nan
    figures = evaluate_boxes(predicted, TRUTH)
    assert figures.precision == 0.75
    assert figures.auc == pytest.approx(0.75 * 20 / 21)


def test_overlaps_equal_those_of_counted_pixels():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 12, (2, 50, 4)).astype(float)
    first[:, 2:] += first[:, :2] + 1
    second[:, 2:] += second[:, :2] + 1
    grid = np.arange(30)

    def mask(box):
        x, y = ((grid >= box[i]) & (grid < box[i + 2]) for i in (0, 1))
        return y[:, None] & x

    counted = [
        (mask(a) & mask(b)).sum() / (mask(a) | mask(b)).sum()
        for a, b in zip(first, second)
    ]
    np.testing.assert_allclose(box_overlaps(first, second), counted)


def test_sequences_count_the_same_whatever_their_length():
    good = evaluate_boxes(TRUTH, TRUTH)
    bad = evaluate_boxes(TRUTH[:1] + 500, TRUTH[:1])
    assert mean_figures([good, bad]).precision == 0.5


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match='8 frames, got 7'):
        evaluate_boxes(TRUTH[1:], TRUTH)
    with pytest.raises(ValueError, match='absent in every frame'):
        evaluate_boxes(TRUTH, np.full_like(TRUTH, np.nan))


def test_the_interval_covers_as_often_as_it_says():
    # 300 samples of 40 values: 95 % +- 1.3 % cover; a bootstrap a bit less.
    rng = np.random.default_rng(0)
    ends = [bootstrap_interval(rng.normal(size=40), 400) for _ in range(300)]
    covered = np.mean([low <= 0 <= high for low, high in ends])
    assert 0.89 <= covered <= 0.98
