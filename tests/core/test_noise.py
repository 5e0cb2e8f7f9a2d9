"""The Gaussian mixture: density against torch.distributions, statistics."""

import math

import pytest
import torch
from torch import distributions as D

from mmdet_ebm.core import (
    GaussianMixtureNoise,
    draw,
    noise_logprob,
    quasi_random_noise,
    sample_noise,
)

from .conftest import generator

SIGMAS = torch.tensor(
    [[0.1, 0.3], [0.4, 0.2], [1.0, 2.0]], dtype=torch.float64
)


def test_logprob_equals_torch_distributions():
    mixture = D.MixtureSameFamily(
        D.Categorical(torch.ones(3, dtype=torch.float64)),
        D.Independent(D.Normal(torch.zeros_like(SIGMAS), SIGMAS), 1),
    )
    offsets = torch.randn(5, 7, 2, dtype=torch.float64) * 3
    torch.testing.assert_close(
        noise_logprob(offsets, SIGMAS), mixture.log_prob(offsets)
    )


def test_density_integrates_to_one():
    grid = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    density = noise_logprob(grid[:, None], SIGMAS[:, :1]).exp()
    assert torch.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)


def test_one_width_for_all_dimensions_is_shared():
    shared = GaussianMixtureNoise([0.1, 0.4])
    spelt = GaussianMixtureNoise([[0.1] * 4, [0.4] * 4])
    offsets = torch.randn(6, 4)
    torch.testing.assert_close(shared.logprob(offsets), spelt.logprob(offsets))


def test_logprob_far_away_is_finite():
    offsets = torch.full((1, 4), 1e4)
    assert GaussianMixtureNoise([0.1, 0.2]).logprob(offsets).isfinite().all()


def test_samples_have_the_mixtures_moments():
    """n = 200,000; mean and variance within 5 standard errors (6e-7 each)."""
    n = 200_000
    source = generator(3)
    samples = sample_noise((n // 100, 100, 2), SIGMAS, source).view(n, 2)
    variance = SIGMAS.square().mean(0)
    fourth = 3 * SIGMAS.pow(4).mean(0)
    assert (samples.mean(0).abs() < 5 * (variance / n).sqrt()).all()
    error = ((fourth - variance.square()) / n).sqrt()
    assert ((samples.var(0) - variance).abs() < 5 * error).all()


def test_a_component_is_drawn_for_each_sample():
    """With one tiny and one huge component, both occur for every instance."""
    sigmas = torch.tensor([[1e-6], [1e3]])
    samples = sample_noise((8, 200, 1), sigmas, generator())
    tiny = (samples.abs() < 1e-3).float().mean((1, 2))
    # 200 fair draws: outside (0.25, 0.75) with a chance of 1e-12 each.
    assert ((tiny > 0.25) & (tiny < 0.75)).all()


def test_scale_multiplies_every_width():
    noise = GaussianMixtureNoise([0.1, 0.4])
    like = torch.zeros(1)
    one, tenth = (
        noise.sample((5, 6, 4), like, scale, generator(1))
        for scale in (1.0, 0.1)
    )
    torch.testing.assert_close(tenth, one * 0.1)


def test_generator_makes_samples_reproducible():
    noise = GaussianMixtureNoise([0.1])
    first, second = (
        noise.sample(
            (3, 4, 2),
            torch.zeros(1),
            generator=generator(5),
        )
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_dtype_follows_the_data_and_state_dict_stays_empty():
    noise = GaussianMixtureNoise([0.1])
    like = torch.zeros(1, dtype=torch.float64)
    assert noise.sample((2, 3), like).dtype == torch.float64
    assert not noise.state_dict()


@pytest.mark.parametrize(
    'sigmas',
    [
        [],
        [0.1, 0.0],
        [-1.0],
        [float('nan')],
        [0.1, float('inf')],
        [[0.1, 0.2], [0.3]],
        'wide',
        [[[0.1]]],
    ],
)
def test_invalid_sigmas_are_refused(sigmas):
    with pytest.raises(ValueError, match='sigmas'):
        GaussianMixtureNoise(sigmas)


def test_standard_normal_at_zero():
    value = noise_logprob(torch.zeros(1), torch.ones(1, 1))
    assert value.item() == pytest.approx(-0.5 * math.log(2 * math.pi))


def test_quasi_random_offsets_have_the_mixtures_moments_and_are_fixed():
    """Far closer to them than independent draws, whose error is 0.6 %."""
    offsets = quasi_random_noise(2**15, SIGMAS, 2)
    variance = SIGMAS.square().mean(0)
    assert (offsets.mean(0).abs() < 1e-3 * variance.sqrt()).all()
    torch.testing.assert_close(
        offsets.square().mean(0), variance, rtol=1e-3, atol=0
    )
    torch.manual_seed(5)
    assert torch.equal(offsets, quasi_random_noise(2**15, SIGMAS, 2))
    other = quasi_random_noise(2**15, SIGMAS, 2, seed=1)
    assert not torch.equal(offsets, other)


def test_quasi_random_components_are_equally_frequent():
    sigmas = torch.tensor([[1e-6], [1.0], [1e6]])
    sizes = quasi_random_noise(300, sigmas, 1).abs()[:, 0]
    assert 98 <= (sizes < 1e-3).sum() <= 102
    assert 98 <= (sizes > 1e3).sum() <= 102


def test_logprob_far_away_is_minus_infinity_and_keeps_its_gradient_elsewhere():
    offsets = torch.tensor([[0.1, 0.2], [1e30, 0.0]], requires_grad=True)
    logprob = noise_logprob(offsets, torch.tensor([[0.1], [0.5]]))
    assert logprob[0].isfinite() and logprob[1] == -math.inf
    (grad,) = torch.autograd.grad(logprob[0], offsets)
    assert grad[0].isfinite().all()


def test_logprob_has_gradients_in_offsets_and_sigmas():
    offsets = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    sigmas = SIGMAS.clone().requires_grad_()
    assert torch.autograd.gradcheck(noise_logprob, (offsets, sigmas))
    assert torch.autograd.gradgradcheck(noise_logprob, (offsets, sigmas))


@pytest.mark.parametrize('generators', [[], [generator(0)] * 3])
def test_generators_that_do_not_divide_the_batch_are_refused(generators):
    with pytest.raises(ValueError, match='multiple of the number'):
        draw(torch.randn, (4, 1), generators)
