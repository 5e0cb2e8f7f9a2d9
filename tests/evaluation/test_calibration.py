"""Calibration figures on errors whose distribution is known."""

import numpy as np
import pytest

from mmdet_ebm.evaluation.calibration import (
    SideErrors,
    calibration,
    constant_std,
    coverage,
    half_widths,
    match_to_truth,
)


def gaussian_errors(scale=1.0, count=20_000):
    """Errors of deviation s, where scale * s is predicted."""
    rng = np.random.default_rng(0)
    std = rng.uniform(0.02, 0.2, (count, 4))
    return SideErrors(std * rng.standard_normal((count, 4)), scale * std)


def test_right_deviations_cover_what_they_say():
    """80,000 sides: shares within 5 standard errors, 0.9 % at most."""
    found = calibration(gaussian_errors())
    for level, share in found['coverage'].items():
        assert share == pytest.approx(float(level) / 100, abs=0.009)
    assert found['calibration_error'] < 0.005
    assert found['z_rms'] == pytest.approx(1, abs=0.02)
    assert found['rank_correlation'] > 0.3
    assert (found['matched'], found['unknown']) == (20_000, 0)


@pytest.mark.parametrize('scale, share', [(0.5, 0.5890), (2.0, 0.9990)])
def test_wrong_deviations_cover_less_or_more(scale, share):
    """Central 90 %: P(|z| < 1.6449 scale)."""
    found = coverage(gaussian_errors(scale), [0.9])
    assert found[0] == pytest.approx(share, abs=0.009)


def test_quantiles_of_other_errors_give_intervals_that_hold_what_they_say():
    """Errors of Laplace's distribution: a Gaussian's 50 % hold 61 %."""
    rng = np.random.default_rng(0)
    std = rng.uniform(0.02, 0.2, (2, 20_000, 4))
    error = std * rng.laplace(scale=2**-0.5, size=std.shape)
    first, second = (SideErrors(e, s) for e, s in zip(error, std))
    levels = [0.5, 0.8, 0.9, 0.95]
    assert coverage(second, levels)[0] == pytest.approx(0.615, abs=0.01)
    np.testing.assert_allclose(
        half_widths(levels, first),
        -np.log(1 - np.array(levels)) / 2**0.5,
        rtol=0.03,
    )
    np.testing.assert_allclose(
        coverage(second, levels, first), levels, atol=0.009
    )
    plain, found = calibration(second), calibration(second, first)
    assert found['calibration_error'] < 0.005 < plain['calibration_error']
    for name in ('nll', 'z_rms', 'rank_correlation'):
        assert found[name] == plain[name]


def test_the_likelihood_is_best_at_the_right_deviation():
    losses = [calibration(gaussian_errors(s))['nll'] for s in (0.8, 1, 1.25)]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_unknown_deviations_are_counted_and_left_out():
    errors = gaussian_errors(count=100)
    spoilt = SideErrors(
        np.concatenate([errors.error, np.full((3, 4), 9.0)]),
        np.concatenate([errors.std, np.full((2, 4), np.nan), [[0, 1, 1, 1]]]),
    )
    found, expected = calibration(spoilt), calibration(errors)
    assert found.pop('unknown') == 3 and found.pop('matched') == 103
    assert found == {k: v for k, v in expected.items() if k in found}


def test_without_matches_there_are_only_counts():
    none = SideErrors(np.zeros((0, 4)), np.zeros((0, 4)))
    assert calibration(none) == dict(matched=0, unknown=0)


def test_constant_deviation_is_the_root_mean_square():
    error = np.array([[3.0, 1, 0, 2], [-4.0, 1, 0, 2]])
    np.testing.assert_allclose(constant_std(error), [np.sqrt(12.5), 1, 0, 2])


def test_matching_takes_the_best_overlap_by_falling_score():
    overlaps = np.array([[0.6, 0.9], [0.7, 0.8], [0.0, 0.55]])
    rows, columns = match_to_truth(overlaps, np.array([0.9, 0.8, 0.7]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    rows, columns = match_to_truth(overlaps, np.array([0.1, 0.2, 0.3]))
    assert sorted(zip(rows, columns)) == [(1, 0), (2, 1)]


@pytest.mark.parametrize('shape', [(0, 3), (3, 0), (0, 0)])
def test_without_boxes_there_are_no_pairs(shape):
    rows, columns = match_to_truth(np.zeros(shape), np.zeros(shape[0]))
    assert len(rows) == len(columns) == 0
