"""The density of a box: f, the detector's box, and what follows from both."""

import math

import pytest
import torch

from mmdet_ebm.core import (
    CAUTIOUS,
    BoxDensity,
    FixedBoxDensity,
    student_logprob,
)
from mmdet_ebm.ops import boxes_to_sides

CENTRES = torch.tensor([[10.0, 20, 50, 40], [0.0, 0, 8, 16]]).double()
NUMBERS = dict(
    temperature=3.0,
    side_std=0.04,
    dof=2.5,
    score_slope=-0.2,
    size_slope=-0.4,
)


def corners_at(sides):
    size = (CENTRES[:, 2:] - CENTRES[:, :2]).repeat(1, 2)
    return CENTRES[:, None] + sides * size[:, None]


def f_of(corners):
    return (corners / 10).sin().sum(-1)


def test_without_a_prior_it_is_f():
    corners = corners_at(0.1 * torch.randn(2, 5, 4).double())
    density = BoxDensity()
    logdensity = density.of_corners(f_of, density.prior(CENTRES))
    assert torch.equal(logdensity(corners), f_of(corners))


def test_f_is_tempered_and_the_prior_is_students_t_of_each_side():
    density = BoxDensity(**NUMBERS)
    scores = torch.tensor([0.9, 0.3]).double()
    prior = density.prior(CENTRES, scores)
    odds, sizes = [9, 3 / 7], [800**0.5, 128**0.5]
    sides = 0.2 * torch.randn(2, 50, 4).double()
    found = density.of_corners(f_of, prior)(corners_at(sides))
    for row in range(2):
        std = 0.04 * odds[row] ** -0.2 * (sizes[row] / 64) ** -0.4
        assert float(prior.std[row]) == pytest.approx(std)
        student = torch.distributions.StudentT(2.5, scale=std)
        expected = student.log_prob(sides[row]).sum(-1)
        difference = found[row] - f_of(corners_at(sides))[row] / 3 - expected
        # Up to a constant.
        torch.testing.assert_close(
            difference, difference[:1].expand_as(difference)
        )


def test_gradients_and_their_gradients():
    density = BoxDensity(**NUMBERS)
    logdensity = density.of_corners(f_of, density.prior(CENTRES))
    sides = 0.05 * torch.randn(2, 1, 4).double()
    corners = corners_at(sides).requires_grad_()
    assert torch.autograd.gradcheck(logdensity, corners)
    assert torch.autograd.gradgradcheck(logdensity, corners)


def test_far_boxes_do_not_overflow():
    assert student_logprob(torch.full((1, 4), 1e9), 3.0).isfinite().all()


def test_scores_of_zero_and_one_and_empty_boxes_give_a_finite_prior():
    density = BoxDensity(**NUMBERS)
    boxes = torch.tensor([[0.0, 0, 9, 9], [0.0, 0, 9, 9], [5.0, 5, 5, 5]])
    prior = density.prior(boxes, torch.tensor([0.0, 1.0, 0.5]))
    assert prior.std.isfinite().all() and (prior.std > 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_scores_near_1_give_a_finite_prior(dtype):
    scores = torch.tensor([0.9995, 1.0]).to(dtype)
    corners = torch.tensor([[0.0, 0, 64, 64]]).expand(2, 4)
    for slope in (0.0, -0.3):
        prior = BoxDensity(side_std=0.1, score_slope=slope).prior(
            corners, scores
        )
        expected = 0.1 * 999**slope
        torch.testing.assert_close(
            prior.std, torch.tensor([expected] * 2), rtol=0.01, atol=0
        )


def test_a_forgotten_fit_leaves_what_a_new_model_has():
    density = BoxDensity(temperature=7.0, vote_share=1.0, fitted=True)
    density.forget()
    new = BoxDensity(**CAUTIOUS)
    assert torch.equal(density.get_extra_state(), new.get_extra_state())


def test_first_steps_are_those_of_f_without_a_prior_and_shorter_with_one():
    usual = (80e-5, 32e-4)
    none = BoxDensity().step_length(usual, torch.tensor([math.inf]))
    assert [float(length) for length in none] == pytest.approx(usual)
    # Newton's steps: f has the curvature 1 / length, and the prior its own.
    std = torch.tensor([0.01, 0.05]).double()
    density = BoxDensity(temperature=2.0, side_std=0.01, dof=3.0)
    found = density.step_length(usual, std)
    for move, lengths, usual_length in zip(
        ([1.0, 0, 1, 0], [-0.5, 0, 0.5, 0]), found, usual
    ):
        sides = torch.tensor(move).double()
        for row in range(2):

            def along(t, sides=sides, row=row):
                return student_logprob(t * sides / std[row], 3.0)

            at = torch.zeros((), dtype=torch.float64)
            curvature = -torch.autograd.functional.hessian(along, at)
            expected = 1 / (1 / (2 * usual_length) + curvature)
            assert float(lengths[row]) == pytest.approx(float(expected))


def test_the_state_carries_the_numbers():
    fitted = BoxDensity(
        2.0, 0.03, 4.0, -0.1, -0.3, vote_share=1.0, quality_power=0.5
    )
    fitted.fitted = True
    other = BoxDensity(**CAUTIOUS)
    other.load_state_dict(fitted.state_dict())
    assert other.numbers() == fitted.numbers() and other.fitted


def test_a_state_without_them_leaves_the_numbers():
    density = BoxDensity(**CAUTIOUS)
    missing = density.load_state_dict({}, strict=False).missing_keys
    assert not missing and not density.fitted
    assert density.temperature == CAUTIOUS['temperature']


@pytest.mark.parametrize(
    'shape', [(7,), (11,), (12,), (13,), (15,), (), (2, 5)]
)
def test_a_state_of_another_version_is_left_out_with_a_warning(shape):
    density = BoxDensity(**CAUTIOUS)
    state = {'_extra_state': torch.ones(shape, dtype=torch.float64)}
    with pytest.warns(UserWarning, match='numbers; expected 14'):
        density.load_state_dict(state)
    assert not density.fitted
    assert density.numbers() == BoxDensity(**CAUTIOUS).numbers()


@pytest.mark.parametrize('missing', [4, 5])
def test_a_state_from_before_the_last_numbers_is_taken(missing):
    """From before the weights of clusters, and the power of deviations."""
    fitted = BoxDensity(2.0, 0.03, std_factor=1.5, fitted=True)
    state = fitted.get_extra_state()
    older = torch.cat([state[: -1 - missing], state[-1:]])
    density = BoxDensity(**CAUTIOUS)
    density.load_state_dict({'_extra_state': older})
    assert density.numbers() == fitted.numbers() and density.fitted


def test_numbers_of_a_config_win_over_a_state():
    given = FixedBoxDensity(temperature=7.0)
    given.load_state_dict(BoxDensity(**CAUTIOUS).state_dict())
    assert given.temperature == 7 and math.isinf(given.side_std)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(temperature=0.0),
        dict(temperature=math.nan),
        dict(side_std=-1.0),
        dict(side_std=math.nan),
        dict(dof=0.0),
        dict(size_slope=math.inf),
        dict(vote_share=1.5),
        dict(quality_power=-1.0),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match='must be positive'):
        BoxDensity(**wrong)


def test_a_number_of_another_name_is_refused():
    with pytest.raises(ValueError, match='no number sigma; it has temp'):
        BoxDensity().set_numbers(sigma=1.0)


def test_sides_are_relative_to_the_reference():
    sides = 0.1 * torch.randn(2, 3, 4).double()
    found = boxes_to_sides(corners_at(sides), CENTRES[:, None])
    torch.testing.assert_close(found, sides)
