"""What a placed box is worth under its density, against plain sampling."""

import math

import pytest
import torch

from mmdet_ebm.core import (
    BoxDensity,
    expected_quality,
    quality,
    side_derivatives,
)

BOX = torch.tensor([[20.0, 30, 120, 90]])
SIZE = torch.tensor([100.0, 60, 100, 60])


def iou(box, others):
    """Of a box (4,) with others (S, 4)."""
    first = torch.maximum(box[:2], others[:, :2])
    last = torch.minimum(box[2:], others[:, 2:])
    overlap = (last - first).clamp(min=0).prod(-1)
    areas = [
        (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (box, others)
    ]
    return overlap / (areas[0] + areas[1] - overlap)


def gaussian(centre, std):
    """f of a Gaussian of the sides, in pixels, around a box."""

    def logdensity(corners):
        return -0.5 * ((corners - centre) / (std * SIZE)).square().sum(-1)

    return logdensity


def flat(corners):
    return corners.new_zeros(corners.shape[:-1])


@pytest.mark.parametrize('std', [0.02, 0.1])
def test_without_a_say_of_f_true_boxes_are_the_priors(std):
    torch.manual_seed(0)
    density = BoxDensity(side_std=std, dof=4.0)
    found = expected_quality(flat, BOX, density, density.prior(BOX), 1024)
    std = density.prior(BOX).std[0]
    draws = torch.distributions.StudentT(4.0, scale=std).sample((200_000, 4))
    expected = quality(iou(BOX[0], BOX + draws * SIZE)).mean()
    assert float(found) == pytest.approx(float(expected), abs=0.01)


def test_a_sharp_f_takes_the_place_of_the_prior():
    torch.manual_seed(0)
    density = BoxDensity(temperature=1.0, side_std=0.3, dof=1.0)
    f = gaussian(BOX, 0.04)
    found = expected_quality(f, BOX, density, density.prior(BOX), 1024)
    draws = 0.04 * torch.randn(200_000, 4)
    expected = quality(iou(BOX[0], BOX + draws * SIZE)).mean()
    assert float(found) == pytest.approx(float(expected), abs=0.02)


def test_a_box_beside_the_maximum_of_f_is_worth_less():
    density = BoxDensity(temperature=1.0, side_std=0.1)
    f = gaussian(BOX, 0.02)
    boxes = torch.cat([BOX, BOX + 0.1 * SIZE])
    prior = density.prior(BOX.expand(2, -1))
    at, beside = expected_quality(f, boxes, density, prior).tolist()
    assert at > beside + 0.2


def test_an_f_that_is_not_trusted_is_not_asked():
    density = BoxDensity(temperature=math.inf, side_std=0.1)

    def never(corners):
        raise AssertionError

    found = expected_quality(never, BOX, density, density.prior(BOX))
    assert 0 < float(found) < 1


def test_without_a_prior_f_decides():
    density = BoxDensity()
    prior = density.prior(BOX)
    sure, unsure = (
        float(expected_quality(gaussian(BOX, std), BOX, density, prior))
        for std in (0.005, 0.1)
    )
    assert sure > 0.9 > unsure


def test_slopes_and_curvatures_of_a_quadratic_are_exact():
    slope = torch.tensor([[1.0, -2, 3, 4]]).double()
    curvature = torch.tensor([[5.0, 6, 0, 8]]).double()

    def logdensity(corners):
        sides = (corners - BOX.double()[:, None]) / SIZE
        return (slope * sides - 0.5 * curvature * sides.square()).sum(-1)

    found = side_derivatives(
        logdensity, BOX.double(), BOX.double(), torch.tensor([0.1]).double()
    )
    torch.testing.assert_close(found, (slope, curvature))


def test_no_boxes_have_no_quality():
    density = BoxDensity(side_std=0.1)
    none = torch.zeros(0, 4)
    assert expected_quality(
        flat, none, density, density.prior(none)
    ).shape == (0,)
