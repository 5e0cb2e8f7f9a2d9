"""Densities of single sides, against dense grids and plain sampling."""

import math

import pytest
import torch

from mmdet_ebm.core import (
    BoxDensity,
    SideDerivatives,
    quality,
    side_densities,
    side_derivatives,
)

BOX = torch.tensor([[20.0, 30, 120, 90]]).double()
SIZE = torch.tensor([100.0, 60, 100, 60]).double()


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
    """f of a Gaussian of the sides, relative to SIZE, around a box."""

    def logdensity(corners):
        return -0.5 * ((corners - centre) / (std * SIZE)).square().sum(-1)

    return logdensity


def flat(corners):
    return corners.new_zeros(corners.shape[:-1])


def densities(f, boxes, density, centres=None):
    prior = density.prior(boxes if centres is None else centres)
    known = side_derivatives(f, boxes, prior)
    return side_densities(boxes, known, density, prior)


def derivatives(slope, curvature):
    """Of an f that is not known itself."""
    at = torch.full_like(slope[:, 0], torch.nan)
    return SideDerivatives(at, slope, curvature)


def on_a_grid(slope, curvature, placed, std, dof, reach=0.15):
    """Mean, deviation and log-density at the box, by 400,000 points."""
    x = torch.linspace(-30 * std, 30 * std, 400_001).double()
    move = x - placed
    reach = min(std, reach)
    f = slope * move.clamp(-reach, reach) - 0.5 * curvature * move.square()
    logp = f - 0.5 * (dof + 1) * torch.log1p((x / std).square() / dof)
    normaliser = logp.logsumexp(0) + (x[1] - x[0]).log()
    mass = (logp - logp.logsumexp(0)).exp()
    mean = (mass * x).sum()
    at = -0.5 * (dof + 1) * math.log1p((placed / std) ** 2 / dof) - normaliser
    return mean, (mass * (x - mean).square()).sum().sqrt(), at, mass.cumsum(0)


@pytest.mark.parametrize('std', [0.01, 0.06])
@pytest.mark.parametrize('dof', [2.5, 20.0])
@pytest.mark.parametrize('f_std', [0.002, 0.02, 0.2])
@pytest.mark.parametrize('placed', [0.0, 0.05])
def test_figures_are_those_of_a_dense_grid(std, dof, f_std, placed):
    density = BoxDensity(temperature=2.0, side_std=std, dof=dof)
    slope, curvature = 3.0, 1 / f_std**2
    boxes = BOX + placed * SIZE
    found = side_densities(
        boxes,
        derivatives(
            torch.full((1, 4), 2 * slope).double(),
            torch.full((1, 4), 2 * curvature).double(),
        ),
        density,
        density.prior(BOX),
    )
    _, deviation, at, cumulative = on_a_grid(
        slope, curvature, placed, std, dof
    )
    torch.testing.assert_close(
        found.std(), deviation.expand(1, 4), rtol=0.06, atol=0
    )
    torch.testing.assert_close(
        found.logprob_placed, at.expand(1, 4), rtol=0, atol=0.06
    )
    levels = torch.tensor([0.05, 0.3, 0.5, 0.9]).double()
    x = torch.linspace(-30 * std, 30 * std, 400_001).double()
    exact = x[torch.searchsorted(cumulative, levels)]
    torch.testing.assert_close(
        found.quantiles(levels.expand(4, -1))[0],
        exact.expand(4, -1),
        rtol=0,
        atol=0.1 * float(deviation),
    )


@pytest.mark.parametrize('std', [0.01, 0.3])
@pytest.mark.parametrize('dof', [1.0, 20.0])
@pytest.mark.parametrize('f_std', [0.002, 0.02, 0.2])
@pytest.mark.parametrize('placed', [0.0, 0.05])
def test_medians_are_those_of_a_dense_grid(std, dof, f_std, placed):
    """And the same densities are told at them."""
    slope = torch.tensor([[0.0, 3.0, 30.0, -30.0]]).double()
    density = BoxDensity(side_std=std, dof=dof)
    found = side_densities(
        BOX + placed * SIZE,
        derivatives(slope, torch.full_like(slope, 1 / f_std**2)),
        density,
        density.prior(BOX),
    )
    medians = found.at_medians()
    for side in range(4):
        _, _, _, cumulative = on_a_grid(
            slope[0, side], 1 / f_std**2, placed, std, dof
        )
        x = torch.linspace(-30 * std, 30 * std, 400_001).double()
        low, middle, high = x[
            torch.searchsorted(
                cumulative, torch.tensor([0.25, 0.5, 0.75]).double()
            )
        ]
        error = medians.placed[0, side] - middle
        assert abs(error) < 0.02 * (high - low)
    at = torch.searchsorted(medians.nodes, medians.placed[..., None])
    around = torch.cat(
        [medians.logprob.gather(2, at - 1), medians.logprob.gather(2, at)], 2
    )
    assert (medians.logprob_placed >= around.amin(2)).all()
    assert (medians.logprob_placed <= around.amax(2)).all()


def test_a_median_is_nearer_to_the_true_side_than_the_top():
    """In the mean, of a density that leans to one side."""
    density = BoxDensity(side_std=0.05, dof=2.0)
    slope = torch.full((1, 4), 20.0).double()
    known = derivatives(slope, 0 * slope)
    found = side_densities(BOX, known, density, density.prior(BOX))

    def expected_distance(sides):
        return (found.mass * (found.nodes - sides[..., None]).abs()).sum(-1)

    top = found.nodes.gather(2, found.logprob.argmax(-1, keepdim=True))
    at_top = expected_distance(top[..., 0])
    assert (expected_distance(found.at_medians().placed) < at_top).all()


def test_masses_sum_to_one_and_nodes_rise():
    density = BoxDensity(side_std=0.05)
    found = densities(gaussian(BOX, 0.02), BOX, density)
    torch.testing.assert_close(found.mass.sum(-1), torch.ones(1, 4).double())
    assert (found.nodes.diff(dim=-1) >= 0).all()


def test_a_slope_is_not_followed_to_where_f_was_not_asked():
    """A linear f would beat the tails of any Student's t far away."""
    density = BoxDensity(temperature=1.0, side_std=0.03)
    prior = density.prior(BOX)
    slope = torch.full(
        (1, 4), 1.15 / 0.03
    ).double()  # the prior's own, at most
    known = derivatives(slope, 0 * slope)
    found = side_densities(BOX, known, density, prior)
    assert (found.std() < 0.1).all()
    assert (found.quantiles(torch.full((4, 1), 0.99)) < 0.3).all()


@pytest.mark.parametrize('std', [0.02, 0.1])
def test_without_a_say_of_f_true_boxes_are_the_priors(std):
    torch.manual_seed(0)
    density = BoxDensity(side_std=std, dof=4.0)
    found = densities(flat, BOX, density).expected_quality(1024)
    draws = torch.distributions.StudentT(4.0, scale=std).sample((200_000, 4))
    expected = quality(iou(BOX[0], BOX + draws * SIZE)).mean()
    assert float(found) == pytest.approx(float(expected), abs=0.005)


def test_a_sharp_f_takes_the_place_of_the_prior():
    torch.manual_seed(0)
    density = BoxDensity(temperature=1.0, side_std=0.3, dof=1.0)
    found = densities(gaussian(BOX, 0.04), BOX, density)
    draws = 0.04 * torch.randn(200_000, 4)
    expected = quality(iou(BOX[0], BOX + draws * SIZE)).mean()
    assert float(found.expected_quality(1024)) == pytest.approx(
        float(expected), abs=0.01
    )
    torch.testing.assert_close(
        found.std(), torch.full((1, 4), 0.04).double(), rtol=0.05, atol=0
    )


def test_a_box_beside_the_maximum_of_f_is_worth_less():
    density = BoxDensity(temperature=1.0, side_std=0.1)
    f = gaussian(BOX, 0.02)
    boxes = torch.cat([BOX, BOX + 0.1 * SIZE])
    found = densities(f, boxes, density, BOX.expand(2, -1))
    at, beside = found.expected_quality().tolist()
    assert at > beside + 0.2


def test_an_infinite_temperature_leaves_the_prior():
    alone, with_f = (
        densities(f, BOX, BoxDensity(temperature=math.inf, side_std=0.1))
        for f in (flat, gaussian(BOX, 0.01))
    )
    torch.testing.assert_close(alone.std(), with_f.std())


def test_an_f_that_is_not_a_number_leaves_the_prior():
    density = BoxDensity(side_std=0.1)
    alone, spoilt = (
        densities(f, BOX, density)
        for f in (flat, lambda c: c.sum(-1) * torch.nan)
    )
    torch.testing.assert_close(alone.std(), spoilt.std())


def test_without_a_prior_f_decides():
    density = BoxDensity()
    sure, unsure = (
        float(densities(gaussian(BOX, std), BOX, density).expected_quality())
        for std in (0.005, 0.1)
    )
    assert sure > 0.9 > unsure


def test_without_both_a_side_is_anywhere_within_reach_of_the_noise():
    found = densities(flat, BOX, BoxDensity())
    uniform = 0.45 / math.sqrt(3)
    torch.testing.assert_close(
        found.std(), torch.full((1, 4), uniform).double(), rtol=0.15, atol=0
    )


def test_slopes_and_curvatures_of_a_quadratic_are_exact():
    slope = torch.tensor([[1.0, -2, 3, 4]]).double()
    curvature = torch.tensor([[5.0, 6, 0, 8]]).double()

    def logdensity(corners):
        sides = (corners - BOX[:, None]) / SIZE
        return (slope * sides - 0.5 * curvature * sides.square()).sum(-1)

    found = side_derivatives(
        logdensity, BOX, BoxDensity(side_std=0.1).prior(BOX)
    )
    torch.testing.assert_close(found.slope, slope)
    torch.testing.assert_close(found.curvature, curvature)
    torch.testing.assert_close(found.logdensity, logdensity(BOX[:, None])[0])


def test_a_box_without_a_size_is_worth_nothing():
    density = BoxDensity(side_std=0.1)
    point = torch.tensor([[5.0, 5, 5, 5]])
    assert densities(flat, point, density).expected_quality().tolist() == [0]


def test_no_boxes_have_no_densities():
    found = densities(flat, BOX[:0], BoxDensity(side_std=0.1))
    assert found.expected_quality().shape == (0,)
    assert found.std().shape == (0, 4)
