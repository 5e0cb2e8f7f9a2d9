"""ML-IS and KLD-IS: values against exact integrals."""

import math

import pytest
import torch
from scipy.integrate import quad

from mmdet_ebm.core import KLDIS, MLIS, noise_logprob

from ..conftest import generator

SIGMAS = (0.1, 0.8)


def skewed(y):
    """A log-density without symmetry, integrable."""
    return (-3 * y.square() + (4 * y).sin()).sum(-1)


def skewed_density(y):
    return math.exp(-3 * y**2 + math.sin(4 * y))


def test_ml_is_tends_to_the_exact_negative_log_likelihood():
    """Error of 200,000 samples; the weights' relative spread is below 2."""
    targets = torch.tensor([[0.2], [-0.4]], dtype=torch.float64)
    normaliser = quad(skewed_density, -5, 5)[0]
    exact = [
        math.log(normaliser) - math.log(skewed_density(t)) for t in (0.2, -0.4)
    ]
    errors = []
    for num_samples in (2_000, 200_000):
        losses, _ = MLIS(SIGMAS, num_samples)(skewed, targets, generator())
        errors.append((losses - torch.tensor(exact)).abs().max().item())
    assert errors[1] < 5 * 2 / math.sqrt(200_000)
    assert errors[1] < errors[0]


def test_kld_is_tends_to_the_exact_divergence_plus_the_entropy():
    sigma_gt, target = 0.3, 0.2
    targets = torch.tensor([[target]], dtype=torch.float64)
    log_normaliser = math.log(quad(skewed_density, -5, 5)[0])

    def integrand(y):
        p = math.exp(-0.5 * ((y - target) / sigma_gt) ** 2) / (
            sigma_gt * math.sqrt(2 * math.pi)
        )
        return p * (math.log(p) - math.log(skewed_density(y)) + log_normaliser)

    divergence = quad(integrand, target - 3, target + 3)[0]
    entropy = 0.5 * math.log(2 * math.pi * math.e * sigma_gt**2)
    loss, _ = KLDIS(SIGMAS, 400_000, sigma_gt)(skewed, targets, generator())
    assert loss.item() == pytest.approx(divergence + entropy, abs=0.02)


@pytest.mark.parametrize('dim', [1, 4])
def test_ml_is_equals_its_formula(dim):
    """The candidates are observed through the log-density function."""
    targets = torch.randn(3, dim, dtype=torch.float64)
    seen = []
    losses, _ = MLIS(SIGMAS, 8)(
        lambda y: seen.append(y) or skewed(y), targets, generator()
    )
    (y,) = seen
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)[:, None]
    assert torch.equal(y[:, 0], targets)
    for n in range(3):
        weights = [
            math.exp(
                skewed(y[n, m]) - noise_logprob(y[n, m] - targets[n], sigmas)
            )
            for m in range(1, 9)
        ]
        expected = math.log(sum(weights) / 8) - skewed(targets[n])
        assert losses[n].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_constant_added_to_f_changes_only_kld_is_by_its_samples_mean():
    """log Z absorbs it; KLD-IS's second term has ratios that average to 1."""
    targets = torch.randn(4, 1)
    plain, _ = MLIS(SIGMAS, 64)(skewed, targets, generator())
    raised, _ = MLIS(SIGMAS, 64)(lambda y: skewed(y) + 3, targets, generator())
    torch.testing.assert_close(plain, raised)
    method = KLDIS(SIGMAS, 100_000, 0.3)
    plain, _ = method(skewed, targets, generator())
    raised, _ = method(lambda y: skewed(y) + 3, targets, generator())
    torch.testing.assert_close(plain, raised, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    'build',
    [
        lambda: MLIS(SIGMAS, 0),
        lambda: MLIS(SIGMAS, 1.5),
        lambda: KLDIS(SIGMAS, 0, 0.1),
        lambda: KLDIS(SIGMAS, 4, 0.0),
        lambda: KLDIS(SIGMAS, 4, math.inf),
        lambda: MLIS((), 4),
    ],
)
def test_invalid_settings_are_refused(build):
    with pytest.raises(ValueError, match='num_samples|sigma'):
        build()
