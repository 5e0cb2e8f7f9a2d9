"""OpenCV's trackers, where OpenCV has them."""

import cv2
import numpy as np
import pytest

from mmdet_ebm.tracking import OpenCVTracker

from .videos import moving_square


def test_csrt_follows_the_square():
    if not hasattr(cv2, 'TrackerCSRT_create'):
        pytest.skip('this OpenCV has no CSRT: no opencv-contrib-python')
    frames, boxes = moving_square()
    tracker = OpenCVTracker('CSRT')
    tracker.init(frames[0], boxes[0])
    found = np.array([tracker.update(frame) for frame in frames[1:]])
    assert np.abs(found - boxes[1:]).max() < 12


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match='expected one of CSRT'):
        OpenCVTracker('KCF')
    with pytest.raises(ValueError, match='NanoTrack'):
        OpenCVTracker('NanoTrack', tmp_path)
