"""What ascents and uncertainties promise, for any f."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdet_ebm.core import (
    BoxAscent,
    IoUNetAscent,
    gradient_ascent,
    laplace,
    weigh_samples,
)

from ..properties import boxes, few, numbers, seeds, tables
from .conftest import generator


def random_logdensity(seed, height=1.0):
    """Waves in all directions; a few of them are undefined somewhere."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 8, generator=draw, dtype=torch.float64)

    def logdensity(y):
        waves = (y @ weight.to(y.dtype)).sin().sum(-1)
        return height * torch.where(waves > 5, torch.nan, waves)

    return logdensity


@few
@given(
    seeds,
    numbers(0, 2.0**100),
    st.sampled_from(['decay', 'secant']),
    numbers(-(2.0**100), 2.0**100),
)
def test_an_ascent_never_ends_lower_or_nowhere(seed, step, rule, height):
    f = random_logdensity(seed, height)
    init = torch.randn(5, 2, 4, generator=generator(seed), dtype=torch.float64)
    result = gradient_ascent(f, init, (step,) * 4, 5, step_rule=rule)
    assert result.y.isfinite().all()
    known = ~f(init).isnan()
    assert (result.logdensity >= f(init))[known].all()
    torch.testing.assert_close(result.logdensity, f(result.y), equal_nan=True)


@few
@given(
    seeds,
    tables(boxes(1000)),
    st.sampled_from([BoxAscent, IoUNetAscent]),
    numbers(0, 2.0**100),
)
def test_boxes_stay_finite_on_any_slope(seed, corners, kind, height):
    f = random_logdensity(seed, height)
    result = kind()(lambda boxes: f(boxes / 1000), corners)
    assert result.y.isfinite().all()
    assert result.y.shape == (len(corners), 1, 4)


def test_a_step_out_of_the_range_of_numbers_is_refused():
    """f is flat far away, so that a step to infinity would not lower it."""
    result = gradient_ascent(
        lambda y: 9 * y.clamp(max=3).sum(-1), torch.ones(1, 1, 2), (1e38,) * 2
    )
    assert result.y.isfinite().all()


@pytest.mark.parametrize('length', [math.inf, math.nan, -1.0])
def test_lengths_of_steps_must_be_finite(length):
    with pytest.raises(ValueError, match='step_length must'):
        BoxAscent(step_length=(length, 0.1))
    with pytest.raises(ValueError, match='step_length must'):
        IoUNetAscent(step_length=length)


@few
@given(seeds, numbers(-1e6, 1e6), numbers(0.125, 8))
def test_weights_are_a_distribution_and_know_no_constant(
    seed, constant, temperature
):
    draw = generator(seed)
    f = 50 * torch.randn(3, 20, generator=draw, dtype=torch.float64)
    q = torch.randn(3, 20, generator=draw, dtype=torch.float64)
    weighted = weigh_samples(f, q, temperature)
    torch.testing.assert_close(
        weighted.weights.sum(1), torch.ones(3, dtype=torch.float64)
    )
    assert (weighted.weights >= 0).all()
    assert (weighted.effective_samples >= 1 - 1e-9).all()
    assert (weighted.effective_samples <= 20 + 1e-9).all()
    moved = weigh_samples(f + constant, q, temperature)
    torch.testing.assert_close(
        moved.weights, weighted.weights, rtol=1e-6, atol=1e-9
    )


@few
@given(seeds, numbers(0.0625, 4), numbers(0.125, 8))
def test_no_gaussian_of_a_curvature_is_wider_than_allowed(
    seed, most, temperature
):
    root = torch.randn(3, 4, 4, generator=generator(seed), dtype=torch.float64)
    curvature = 10 * (root + root.mT)
    fitted = laplace(curvature, most, temperature)
    widths = torch.linalg.eigvalsh(fitted.covariance)
    assert (widths > 0).all() and (widths <= most**2 * (1 + 1e-9)).all()
