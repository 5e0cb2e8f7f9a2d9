"""Moments, normalisers and curvature against Gaussians and integrals."""

import math

import pytest
import torch

from mmdet_ebm.core import (
    fit_deviations,
    hessian,
    laplace,
    noise_logprob,
    quasi_random_noise,
    sample_density,
    sample_noise,
    weigh_samples,
)

from .conftest import generator

SIGMAS = torch.tensor([[0.05], [0.1], [0.2]], dtype=torch.float64)
# Two Gaussians in four dimensions, correlated, off the centre.
MEANS = torch.tensor(
    [[0.02, -0.01, 0.03, 0.0], [-0.03, 0.02, 0.0, 0.05]], dtype=torch.float64
)
ROOT = torch.tensor(
    [
        [0.06, 0, 0, 0],
        [0.02, 0.05, 0, 0],
        [0, 0.01, 0.08, 0],
        [0.03, 0, -0.02, 0.07],
    ],
    dtype=torch.float64,
)
COVARIANCES = torch.stack([ROOT @ ROOT.T, 0.5 * ROOT.T @ ROOT])


def gaussians(y, shift=7.0):
    """(2, S, 4) -> log N(y; mean, covariance) + shift."""
    deviation = y - MEANS[:, None]
    square = torch.einsum(
        'nsd,nde,nse->ns', deviation, COVARIANCES.inverse(), deviation
    )
    constant = torch.logdet(2 * math.pi * COVARIANCES)
    return shift - 0.5 * square - 0.5 * constant[:, None]


def samples(num_samples, seed=0):
    return sample_noise(
        (2, num_samples, 4),
        SIGMAS,
        generator(seed),
    )


def test_moments_and_normaliser_of_gaussians():
    """40 independent sets of 4,000 samples: within 5 standard errors."""
    found = []
    for seed in range(40):
        y = samples(4_000, seed)
        weighted = weigh_samples(gaussians(y), noise_logprob(y, SIGMAS))
        mean, covariance = weighted.moments(y)
        found.append(
            torch.cat(
                [
                    mean,
                    covariance.flatten(1),
                    weighted.log_normaliser[:, None],
                ],
                1,
            )
        )
    found = torch.stack(found)
    expected = torch.cat(
        [MEANS, COVARIANCES.flatten(1), torch.full((2, 1), 7.0).double()], 1
    )
    error = found.std(0) / math.sqrt(40)
    assert ((found.mean(0) - expected).abs() < 5 * error).all()
    assert (error < 1e-2).all()


@pytest.mark.parametrize('temperature', [0.25, 1.0, 2.0])
def test_temperature_scales_the_covariance_of_a_gaussian(temperature):
    y = samples(200_000)
    weighted = weigh_samples(
        gaussians(y), noise_logprob(y, SIGMAS), temperature
    )
    _, covariance = weighted.moments(y)
    scale = temperature * COVARIANCES.diagonal(dim1=1, dim2=2).amax()
    assert (covariance - temperature * COVARIANCES).abs().max() < 0.05 * scale


@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_a_mixture_against_numerical_integration(temperature):
    """Two bumps in one dimension, also through a nonlinear function."""
    grid = torch.linspace(-3, 3, 20_001, dtype=torch.float64)

    def logdensity(y):
        return torch.logaddexp(
            -0.5 * ((y - 0.2) / 0.06) ** 2, -0.7 - 0.5 * ((y + 0.1) / 0.1) ** 2
        )

    sigmas = torch.tensor([[0.1], [0.3]], dtype=torch.float64)
    density = (logdensity(grid) / temperature).exp()
    total = torch.trapezoid(density, grid)
    density = density / total
    # The mean and variance of y and of exp(y).
    values = torch.stack([grid, grid.exp()], -1)
    mean = torch.trapezoid(density[:, None] * values, grid, dim=0)
    variance = torch.trapezoid(
        density[:, None] * (values - mean).square(), grid, dim=0
    )

    y = quasi_random_noise(2**14, sigmas, 1)
    weighted = weigh_samples(
        logdensity(y.T), noise_logprob(y, sigmas), temperature
    )
    found, covariance = weighted.moments(torch.cat([y, y.exp()], 1))
    torch.testing.assert_close(
        weighted.log_normaliser, total.log()[None], atol=2e-3, rtol=0
    )
    torch.testing.assert_close(found[0], mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        covariance[0].diagonal(), variance, atol=0, rtol=0.01
    )


def test_effective_samples():
    noise = torch.zeros(1, 8)
    equal = weigh_samples(torch.zeros(1, 8), noise)
    assert equal.effective_samples.item() == pytest.approx(8)
    two = torch.tensor([[0.0, 0, -1e4, -1e4, -1e4, -1e4, -1e4, -1e4]])
    assert weigh_samples(two, noise).effective_samples.item() == pytest.approx(
        2
    )


def test_equal_weights_give_the_usual_unbiased_covariance():
    values = torch.randn(9, 3, dtype=torch.float64)
    weighted = weigh_samples(torch.zeros(1, 9).double(), torch.zeros(9))
    mean, covariance = weighted.moments(values)
    torch.testing.assert_close(mean[0], values.mean(0))
    torch.testing.assert_close(covariance[0], values.T.cov())


def test_a_constant_in_f_moves_the_normaliser_alone():
    y = samples(50)
    low, high = (
        weigh_samples(gaussians(y, shift), noise_logprob(y, SIGMAS))
        for shift in (-1e4, 1e4)
    )
    torch.testing.assert_close(low.weights, high.weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        high.log_normaliser - low.log_normaliser,
        torch.full((2,), 2e4).double(),
    )


def test_samples_where_f_is_not_finite_have_no_weight():
    y = samples(200)
    f = gaussians(y)
    spoilt = torch.cat([f, torch.full((2, 3), torch.nan)], 1)
    spoilt[:, -1] = torch.inf
    noise = torch.cat([noise_logprob(y, SIGMAS), torch.zeros(2, 3)], 1)
    found = weigh_samples(spoilt, noise)
    expected = weigh_samples(f, noise_logprob(y, SIGMAS))
    torch.testing.assert_close(found.weights[:, :200], expected.weights)
    assert (found.weights[:, 200:] == 0).all()
    # Three more samples at which the density is zero.
    torch.testing.assert_close(
        found.log_normaliser, expected.log_normaliser + math.log(200 / 203)
    )


def test_without_any_finite_f_nothing_is_claimed():
    f = torch.stack([torch.zeros(5), torch.full((5,), torch.nan)])
    weighted = weigh_samples(f, torch.zeros(5))
    mean, covariance = weighted.moments(torch.randn(5, 2))
    assert weighted.effective_samples.tolist() == pytest.approx([5, 0])
    for quantity in (weighted.log_normaliser, mean, covariance):
        assert quantity[0].isfinite().all() and quantity[1].isnan().all()


def test_one_sample_tells_no_spread():
    weighted = weigh_samples(torch.tensor([[0.0, -1e4, -1e4]]), torch.zeros(3))
    mean, covariance = weighted.moments(torch.tensor([[3.0], [4], [5]]))
    assert mean.item() == 3 and covariance.isnan().all()


def test_no_instances():
    weighted = weigh_samples(torch.zeros(0, 4), torch.zeros(4))
    mean, covariance = weighted.moments(torch.zeros(4, 2))
    assert mean.shape == (0, 2) and covariance.shape == (0, 2, 2)
    fitted = laplace(
        hessian(lambda y: y.square().sum(-1), torch.zeros(0, 3)), 0.3
    )
    assert fitted.covariance.shape == (0, 3, 3) and len(fitted.clamped) == 0


# ------------------------------------------------------------------ curvature


def test_laplace_of_gaussians_is_exact():
    y = MEANS + 0.01  # anywhere: the curvature is the same
    second = hessian(gaussians, y)
    torch.testing.assert_close(second, -COVARIANCES.inverse())
    fitted = laplace(second, max_sigma=10.0)
    torch.testing.assert_close(fitted.covariance, COVARIANCES)
    at_mean = gaussians(MEANS[:, None], shift=0.0)[:, 0]
    torch.testing.assert_close(fitted.logprob, at_mean)
    assert not fitted.clamped.any()
    warm = laplace(second, max_sigma=10.0, temperature=2.0)
    torch.testing.assert_close(warm.covariance, 2 * COVARIANCES)


def test_hessian_equals_that_of_torch():
    weight = torch.randn(4, 6, dtype=torch.float64)

    def logdensity(y):
        return (
            torch.tanh(y @ weight).square() * torch.arange(6).double()
        ).sum(-1)

    y = torch.randn(3, 4, dtype=torch.float64)
    expected = torch.stack(
        [
            torch.autograd.functional.hessian(
                lambda point: logdensity(point[None, None]).sum(), point
            )
            for point in y
        ]
    )
    with torch.inference_mode():
        torch.testing.assert_close(hessian(logdensity, y), expected)


def test_flat_and_convex_directions_are_as_wide_as_allowed():
    """Curvatures -4, 0, +9 and, in another instance, -4 alone."""
    second = torch.diag_embed(torch.tensor([[-4.0, 0, 9], [-4.0, -4, -4]]))
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    fitted = laplace(turn @ second @ turn.T, max_sigma=3.0)
    expected = (
        turn
        @ torch.diag_embed(torch.tensor([[0.25, 9, 9], [0.25, 0.25, 0.25]]))
        @ turn.T
    )
    torch.testing.assert_close(fitted.covariance, expected)
    assert fitted.clamped.tolist() == [True, False]


def test_a_linear_f_has_no_curvature():
    y = torch.randn(2, 4)
    for f in (lambda y: y.sum(-1), lambda y: torch.relu(y + 9).sum(-1)):
        fitted = laplace(hessian(f, y), max_sigma=0.3)
        assert fitted.clamped.all()
        torch.testing.assert_close(
            fitted.covariance, 0.09 * torch.eye(4).expand(2, 4, 4)
        )


def test_a_curvature_that_is_not_finite_gives_nan():
    second = -torch.eye(2).repeat(2, 1, 1)
    second[0, 0, 1] = torch.nan
    fitted = laplace(second, 1.0)
    assert fitted.covariance[0].isnan().all() and fitted.logprob[0].isnan()
    torch.testing.assert_close(fitted.covariance[1], torch.eye(2))


@pytest.mark.parametrize('wrong', [0, -1.0, math.inf, math.nan])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match='temperature must be positive'):
        weigh_samples(torch.zeros(1, 2), torch.zeros(2), wrong)
    with pytest.raises(ValueError, match='temperature must be positive'):
        laplace(-torch.eye(2)[None], 1.0, wrong)
    with pytest.raises(ValueError, match='max_sigma must be positive'):
        laplace(-torch.eye(2)[None], wrong)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r'\(3, 4\) and \(3,\)'):
        weigh_samples(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match=r'Hessians \(N, D, D\)'):
        laplace(torch.zeros(3, 4), 1.0)


# ----------------------------------------------------------------- two rounds


def two_rounds(logdensity, num_samples=64, second=64, centres=None, **options):
    centres = MEANS * 0 if centres is None else centres
    wide = quasi_random_noise(num_samples, SIGMAS, 4)
    normal = (
        torch.zeros(0, 4).double()
        if second == 0
        else (quasi_random_noise(second, torch.ones(1, 1).double(), 4, seed=1))
    )
    return sample_density(logdensity, centres, wide, normal, SIGMAS, **options)


def test_the_second_round_multiplies_the_effective_samples():
    """A density of half the width of the narrowest component."""

    def narrow(y):
        return -0.5 * ((y - 0.02) / 0.025).square().sum(-1)

    one, two = two_rounds(narrow, 128, 0), two_rounds(narrow, 64, 64)
    assert one.offsets.shape == two.offsets.shape == (2, 128, 4)
    assert (one.weigh().effective_samples < 10).all()
    assert (two.weigh().effective_samples > 25).all()


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_two_rounds_give_the_moments_of_gaussians(temperature):
    """Within 3 %, from 8,192 samples; a small ball would cut the tails."""
    found = two_rounds(
        gaussians, 4096, 4096, temperature=temperature, radius=9.0
    )
    weighted = found.weigh(temperature)
    mean, covariance = weighted.moments(found.offsets)
    assert (mean - MEANS).abs().max() < 2e-3
    scale = temperature * COVARIANCES.diagonal(dim1=1, dim2=2).amax()
    assert (covariance - temperature * COVARIANCES).abs().max() < 0.03 * scale
    # Z of N^(1/T): log of T^(D/2) |2 pi C|^((1 - 1/T) / 2), and the shift.
    log_normaliser = (
        7 / temperature
        + 2 * math.log(temperature)
        + 0.5 * (1 - 1 / temperature) * torch.logdet(2 * math.pi * COVARIANCES)
    )
    assert (weighted.log_normaliser - log_normaliser).abs().max() < 0.02


def test_a_constant_f_is_the_uniform_density_of_the_ball():
    """Radius 3 x 0.2 in 4D: volume pi^2 r^4 / 2, variance r^2 / 6."""
    found = two_rounds(lambda y: y.sum(-1) * 0, 8192, 8192)
    weighted = found.weigh()
    _, covariance = weighted.moments(found.offsets)
    radius = 0.6
    volume = math.pi**2 * radius**4 / 2
    assert (weighted.log_normaliser - math.log(volume)).abs().max() < 0.05
    torch.testing.assert_close(
        covariance,
        (radius**2 / 6 * torch.eye(4)).double().expand(2, 4, 4),
        atol=0.1 * radius**2 / 6,
        rtol=0,
    )


def test_the_density_moves_with_its_centre():
    shift = torch.full((2, 4), 5.0).double()
    here = two_rounds(gaussians)
    there = two_rounds(lambda y: gaussians(y - 5.0), centres=shift)
    torch.testing.assert_close(there.weigh().weights, here.weigh().weights)
    torch.testing.assert_close(there.offsets, here.offsets)


def test_an_f_that_grows_without_end_stays_in_the_ball():
    found = two_rounds(lambda y: 500 * y.square().sum(-1))
    mean, covariance = found.weigh().moments(found.offsets)
    assert mean.abs().max() <= 0.6
    assert covariance.diagonal(dim1=1, dim2=2).amax() <= 0.6**2


def test_two_rounds_of_an_f_that_is_nan_claim_nothing():
    found = two_rounds(lambda y: y.sum(-1) + torch.nan)
    weighted = found.weigh()
    assert (weighted.effective_samples == 0).all()
    assert weighted.moments(found.offsets)[1].isnan().all()


def test_nothing_is_read_back_to_the_host():
    """Tensors without data cannot be."""
    centres, wide, normal, sigmas = (
        torch.zeros(*shape, device='meta')
        for shape in ((3, 4), (8, 4), (8, 4), (2, 1))
    )
    found = sample_density(lambda y: y.sum(-1), centres, wide, normal, sigmas)
    _, covariance = found.weigh().moments(found.offsets)
    assert covariance.shape == (3, 4, 4)


def test_radius_must_be_positive():
    with pytest.raises(ValueError, match='radius must be positive, got 0'):
        two_rounds(gaussians, radius=0)


def test_deviations_are_fitted_by_likelihood():
    generator = torch.Generator().manual_seed(0)
    std = torch.rand(4000, 4, generator=generator) + 0.1
    errors = 0.3 * std**0.5 * torch.randn(std.shape, generator=generator)
    factor, power = fit_deviations(errors, std)
    assert factor == pytest.approx(0.3, rel=0.05)
    assert power == pytest.approx(0.5, abs=0.051)

    def unlikely(deviation):
        return (
            errors / deviation
        ).square().mean() / 2 + deviation.log().mean()

    constant = errors.square().mean().sqrt().expand_as(std)
    assert unlikely(factor * std**power) < unlikely(constant)


def test_unknown_deviations_and_no_errors_change_nothing():
    nothing = torch.zeros(0, 4)
    assert fit_deviations(nothing, nothing) == (1, 1)
    errors = torch.tensor([[0.2, torch.nan, 0.3, 0.1]])
    std = torch.tensor([[0.1, 0.1, torch.nan, 0.0]])
    assert fit_deviations(errors, std)[0] > 0
    assert fit_deviations(0 * std.nan_to_num(), std) == (1, 1)
