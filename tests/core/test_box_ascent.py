"""The ascents of boxes."""

import math

import pytest
import torch

from mmdet_ebm.core import (
    BoxAscent,
    IoUNetAscent,
    gradient_ascent,
    stopping_ascent,
)
from mmdet_ebm.ops import boxes_to_relative, relative_to_boxes

CORNERS = torch.tensor([[10.0, 20, 50, 40], [0, 0, 8, 90], [30, 5, 95, 77]])
TRUTH = torch.tensor([[12.0, 19, 55, 42], [1, 2, 9, 80], [33, 9, 90, 79]])

every_ascent = pytest.mark.parametrize('ascent', [BoxAscent, IoUNetAscent])


def closeness(corners):
    """(R, S, 4) -> (R, S); 0 at the truth."""
    offsets = boxes_to_relative(corners, TRUTH[:, None])
    return -offsets.square().sum(-1)


def test_published_box_ascent_is_an_ascent_in_relative_space():
    reference = CORNERS[:, None]
    expected = gradient_ascent(
        lambda t: closeness(relative_to_boxes(t, reference)),
        torch.zeros(3, 1, 4),
        (0.1, 0.1, 0.2, 0.2),
        6,
        0.3,
    )
    result = BoxAscent(6, (0.1, 0.2), 0.3, 'decay')(closeness, CORNERS)
    for ours, theirs in (
        (result.y, relative_to_boxes(expected.y, reference)),
        (result.logdensity, expected.logdensity),
        (result.info.logdensities, expected.info.logdensities),
        (
            boxes_to_relative(result.info.trajectory, reference),
            expected.info.trajectory,
        ),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert torch.equal(result.info.num_accepted, expected.info.num_accepted)


def test_secant_steps_of_boxes_follow_the_curvature_of_each_side():
    """Sides of curvatures 6 to 16 are at the peak after the second step."""
    box = torch.tensor([[10.0, 20, 1010, 1020]])
    goal = box + torch.tensor([3.0, -2, 1, -4])
    curvature = torch.tensor([6.0, 9, 12, 16]) * 1e-6 / 40e-4

    def logdensity(corners):
        return -0.5 * (curvature * (corners - goal).square()).sum(-1)

    # c / s = 1 / 4: a side moves by 2 c times its size squared.
    ascent = BoxAscent(2, (2e-4, 8e-4), step_rule='secant')
    result = ascent(logdensity, box)
    torch.testing.assert_close(result.y[0], goal, atol=0.02, rtol=0)


def test_iou_net_ascent_steps_by_the_sides_in_pixels():
    """f = x1 / 100 + y2 / 50: x1 moves by 0.5 w / 100, y2 by 0.5 h / 50."""
    box = torch.tensor([[10.0, 20, 50, 40]])
    result = IoUNetAscent(num_steps=1)(
        lambda c: c[..., 0] / 100 + c[..., 3] / 50, box
    )
    assert result.y.tolist() == [[pytest.approx([10.2, 20, 50, 40.2])]]
    expected = stopping_ascent(
        closeness,
        CORNERS[:, None],
        lambda y: 0.3 * (y[..., 2:] - y[..., :2]).repeat(1, 1, 2),
        4,
        0.002,
        0.02,
    )
    result = IoUNetAscent(4, 0.3, 0.002, 0.02)(closeness, CORNERS)
    assert torch.equal(result.info.trajectory, expected.info.trajectory)
    assert torch.equal(result.info.num_accepted, expected.info.num_accepted)


@every_ascent
def test_the_trajectory_leads_from_the_boxes_to_the_result(ascent):
    ascent = ascent()
    result = ascent(closeness, CORNERS)
    trajectory = result.info.trajectory
    assert trajectory.shape == (ascent.num_steps + 1, 3, 1, 4)
    torch.testing.assert_close(trajectory[0, :, 0], CORNERS)
    assert torch.equal(trajectory[-1], result.y)
    torch.testing.assert_close(
        torch.stack([closeness(corners) for corners in trajectory]),
        result.info.logdensities,
    )
    assert (result.logdensity > closeness(CORNERS[:, None])).all()


@every_ascent
def test_attributes_may_be_changed(ascent):
    changed = ascent()
    changed.num_steps = 1
    assert torch.equal(
        changed(closeness, CORNERS).y,
        ascent(num_steps=1)(closeness, CORNERS).y,
    )
    changed.num_steps = -1
    with pytest.raises(ValueError, match='num_steps'):
        changed(closeness, CORNERS)


@every_ascent
def test_boxes_from_inference_mode(ascent):
    expected = ascent()(closeness, CORNERS)
    with torch.inference_mode():
        result = ascent()(closeness, CORNERS.clone())
    for value in (result.y, result.info.trajectory, result.info.logdensities):
        assert not value.is_inference()
    assert torch.equal(result.y, expected.y)


@every_ascent
def test_no_boxes_and_boxes_without_data(ascent):
    result = ascent()(lambda c: c.sum(-1), torch.zeros(0, 4))
    assert result.y.shape == (0, 1, 4)
    on_meta = torch.zeros(3, 4, device='meta')
    assert ascent()(lambda c: c.sum(-1), on_meta).y.shape == (3, 1, 4)


@pytest.mark.parametrize(
    'build',
    [
        lambda: BoxAscent(step_length=0.1),
        lambda: BoxAscent(step_length=(0.1,)),
        lambda: BoxAscent(step_length=(0.1, -0.1)),
        lambda: BoxAscent(step_length=(0.1, math.nan)),
        lambda: BoxAscent(step_length=(0.1, [1])),
        lambda: BoxAscent(step_length='ab'),
        lambda: BoxAscent(step_decay='half'),
        lambda: BoxAscent(num_steps=1.5),
        lambda: BoxAscent(step_rule=[1]),
        lambda: IoUNetAscent(step_length=None),
        lambda: IoUNetAscent(min_change={}),
        lambda: IoUNetAscent(max_fall=math.inf),
        lambda: BoxAscent(step_decay=1.0),
        lambda: BoxAscent(num_steps=-1),
        lambda: BoxAscent(step_rule='newton'),
        lambda: IoUNetAscent(step_length=-0.1),
        lambda: IoUNetAscent(num_steps=-1),
        lambda: IoUNetAscent(min_change=-1.0),
        lambda: IoUNetAscent(max_fall=math.nan),
    ],
)
def test_wrong_numbers_are_refused(build):
    with pytest.raises(ValueError, match='step_|num_steps|must not be'):
        build()
