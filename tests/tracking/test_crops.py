"""Regions and patches: a target is where the mapped box says it is."""

import cv2
import numpy as np
import pytest

from mmdet_ebm.tracking import Region

from .videos import moving_square


def painted(box, height=60, width=80):
    x1, y1, x2, y2 = np.asarray(box).astype(int)
    frame = np.zeros((height, width, 3), np.uint8)
    frame[y1:y2, x1:x2] = 255
    return frame


@pytest.mark.parametrize('shift', [(0, 0), (0.4, -0.3)])
@pytest.mark.parametrize('log_scale', [(0, 0), (0.3, -0.2)])
def test_the_target_is_where_the_mapped_box_is(shift, log_scale):
    box = np.array([30.0, 20, 54, 36])
    region = Region.around(box, 3.0, 120, shift, log_scale)
    patch = region.cut(painted(box))
    x1, y1, x2, y2 = np.round(region.to_patch(box)).astype(int)
    inside = np.zeros(patch.shape[:2], bool)
    inside[y1:y2, x1:x2] = True
    assert patch.shape == (120, 120, 3)
    assert (patch[..., 0] > 127)[inside].mean() > 0.95
    assert (patch[..., 0] > 127)[~inside].mean() < 0.02


def test_boxes_survive_the_way_there_and_back():
    boxes = np.array([[3.5, 4.25, 20, 30], [-5, 2, 90, 70]])
    region = Region.around(boxes[0], 2.5, 96, (0.2, 0.1), (0.3, 0.0))
    np.testing.assert_allclose(region.to_frame(region.to_patch(boxes)), boxes)


def test_beyond_the_frame_its_edge_goes_on():
    frame, boxes = moving_square(1)
    region = Region(-20, -10, 40, 30, 40)
    patch = region.cut(np.ascontiguousarray(frame[0]))
    assert (patch[:13, :19] == patch[0, 0]).all()
    far = Region(-500, -500, 40, 40, 16).cut(frame[0])
    assert (far == frame[0][0, 0]).all()


def test_regions_are_the_whole_pixels_that_shipped_weights_were_trained_on():
    region = Region.around(np.array([9.9, 20, 30.9, 42]), 2.5, 96)
    # The root of the area is 21.494, the side 53.735: 20.4 - 26.868 is -6.468.
    assert region == Region(-6, 4, 54, 54, 96)


def test_a_box_without_area_has_a_region():
    region = Region.around(np.array([5.0, 5, 5, 5]), 2.5, 16)
    assert region.cut(np.zeros((20, 20, 3), np.uint8)).shape == (16, 16, 3)


@pytest.mark.parametrize('scale', [1, 30])
def test_a_large_region_is_like_a_smaller_one_of_the_same_place(scale):
    """30 times the frame: the patch is made without all those pixels."""
    rng = np.random.default_rng(0)
    frame = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (400, 300))
    box = np.array([20.0, 30, 380, 270])
    region = Region.around(box, 1.5, 48)
    large = Region(
        *(scale * v for v in (region.x, region.y)),
        scale * region.width,
        scale * region.height,
        48,
    )
    big = cv2.resize(frame, None, fx=scale, fy=scale)
    difference = large.cut(big).astype(float) - region.cut(frame)
    assert np.abs(difference).mean() < 12  # positions are rounded


@pytest.mark.parametrize(
    'box',
    [
        [0, 0, 1e30, 1e30],
        [1e30, 0, 2e30, 9],
        [-1e300, 0, -1e299, 5],
        [0, 0, 1e6, 2],
    ],
)
def test_no_box_is_too_far_or_too_large(box):
    region = Region.around(np.array(box, float), 5.0, 32)
    frame = np.full((60, 80, 3), 7, np.uint8)
    patch = region.cut(frame)
    assert patch.shape == (32, 32, 3) and (patch == 7).all()
