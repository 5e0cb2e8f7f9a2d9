"""The density of a box: f, the detector's box, and what follows from both."""

import math

import pytest
import torch

from mmdet_ebm.core import (
    CAUTIOUS,
    BoxDensity,
    FixedBoxDensity,
    curvature_std,
    expected_quality,
    relative_iou,
)
from mmdet_ebm.ops import relative_to_boxes

CENTRES = torch.tensor([[10.0, 20, 50, 40], [0.0, 0, 8, 16]]).double()


def corners_at(relative):
    return relative_to_boxes(relative, CENTRES[:, None])


def f_of(corners):
    return (corners / 10).sin().sum(-1)


def test_without_a_prior_it_is_f():
    corners = corners_at(0.1 * torch.randn(2, 5, 4).double())
    density = BoxDensity().of_corners(f_of, CENTRES)
    assert torch.equal(density(corners), f_of(corners))


def test_f_is_tempered_and_the_prior_is_a_narrow_and_a_wide_gaussian():
    relative = 0.2 * torch.randn(2, 50, 4).double()
    numbers = dict(
        temperature=3.0,
        centre_std=0.04,
        size_std=0.1,
        tail_share=0.3,
        tail_factor=4.0,
    )
    found = BoxDensity(**numbers).of_corners(f_of, CENTRES)(
        corners_at(relative)
    )
    std = torch.tensor([0.04, 0.04, 0.1, 0.1]).double()
    narrow, wide = (
        torch.distributions.Normal(torch.zeros(4).double(), k * std)
        .log_prob(relative)
        .sum(-1)
        for k in (1, 4)
    )
    prior = torch.logaddexp(math.log(0.7) + narrow, math.log(0.3) + wide)
    difference = found - f_of(corners_at(relative)) / 3 - prior
    # Up to a constant.
    torch.testing.assert_close(
        difference, difference[:1, :1].expand_as(difference)
    )


def test_gradients_and_their_gradients():
    density = BoxDensity(**CAUTIOUS).of_corners(f_of, CENTRES)
    relative = 0.05 * torch.randn(2, 1, 4).double()
    corners = corners_at(relative).requires_grad_()
    assert torch.autograd.gradcheck(density, corners)
    assert torch.autograd.gradgradcheck(density, corners)


def test_far_boxes_do_not_overflow():
    density = BoxDensity(**CAUTIOUS)
    far = torch.full((1, 1, 4), 1e6)
    assert density.logprior(far).isfinite().all()


def test_first_steps_are_those_of_f_without_a_prior_and_shorter_with_one():
    usual = (80e-5, 32e-4)
    assert BoxDensity().step_length(usual) == usual
    short = BoxDensity(temperature=2.0, centre_std=0.01).step_length(usual)
    assert short[0] == pytest.approx(1 / (1 / 160e-5 + 1 / 1e-4))
    assert short[1] == pytest.approx(64e-4)


def test_the_state_carries_the_numbers():
    fitted = BoxDensity(2.0, 0.03, 0.05, 0.2, 3.0, 0.5, fitted=True)
    other = BoxDensity(**CAUTIOUS)
    other.load_state_dict(fitted.state_dict())
    assert other.numbers() == fitted.numbers() and other.fitted


def test_a_state_without_them_leaves_the_numbers():
    density = BoxDensity(**CAUTIOUS)
    missing = density.load_state_dict({}, strict=False).missing_keys
    assert not missing and not density.fitted
    assert density.temperature == CAUTIOUS['temperature']


def test_numbers_of_a_config_win_over_a_state():
    given = FixedBoxDensity(temperature=7.0)
    given.load_state_dict(BoxDensity(**CAUTIOUS).state_dict())
    assert given.temperature == 7 and math.isinf(given.centre_std)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(temperature=0.0),
        dict(centre_std=-1.0),
        dict(size_std=math.nan),
        dict(tail_share=1.0),
        dict(tail_factor=0.5),
        dict(quality_power=-1.0),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match='must be positive'):
        BoxDensity(**wrong)


def test_deviations_of_a_gaussian_are_found_by_its_curvature():
    std = torch.tensor([0.01, 0.02, 0.03, 0.05])

    def logdensity(y):
        return -0.5 * (y / std).square().sum(-1)

    found = curvature_std(logdensity, torch.zeros(3, 4), [0.1] * 4)
    torch.testing.assert_close(found, std.expand(3, 4))


def test_no_deviation_is_larger_than_the_priors():
    found = curvature_std(
        lambda y: y.square().sum(-1), torch.zeros(2, 4), [0.1, 0.1, 0.1, 9.0]
    )
    torch.testing.assert_close(
        found, torch.tensor([0.1, 0.1, 0.1, 0.15]).expand(2, 4)
    )


def test_quality_is_the_expected_share_of_thresholds_passed():
    std = torch.tensor([[0.02, 0.02, 0.05, 0.05], [0.2, 0.2, 0.3, 0.3]])
    draws = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0))
    for row, quality in zip(std, expected_quality(std)):
        iou = relative_iou(row * draws)
        expected = ((iou - 0.45) / 0.5).clamp(0, 1).mean()
        assert quality == pytest.approx(float(expected), abs=0.02)


def test_a_sure_box_has_quality_one():
    assert expected_quality(torch.full((1, 4), 1e-6)).item() == 1
