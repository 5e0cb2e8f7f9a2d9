"""Pictures of calibration."""

import cv2
import numpy as np

from mmdet_ebm.evaluation.calibration import SideErrors
from mmdet_ebm.visualization.reliability import (
    binned_deviations,
    draw_reliability,
)


def errors(factor):
    """Errors that are ``factor`` times their predicted deviation; one NaN."""
    std = np.linspace(0.01, 0.4, 160).reshape(40, 4)
    return SideErrors(
        np.concatenate([factor * std, [[9.0] * 4]]),
        np.concatenate([std, [[np.nan] * 4]]),
    )


def test_groups_have_the_root_mean_squares_of_their_sides():
    predicted, actual = binned_deviations([errors(2.0), errors(2.0)])
    assert len(predicted) == 8 and (np.diff(predicted) > 0).all()
    np.testing.assert_allclose(actual, 2 * predicted)
    first = np.linspace(0.01, 0.4, 160)[:20]  # an eighth of the known sides
    np.testing.assert_allclose(predicted[0], np.sqrt(np.mean(first**2)))


def test_a_picture_is_written(tmp_path):
    runs = [dict(right=errors(1.0), wrong=errors(f)) for f in (0.5, 2.0)]
    draw_reliability(runs, tmp_path / 'reliability.png')
    assert cv2.imread(str(tmp_path / 'reliability.png')).std() > 10
