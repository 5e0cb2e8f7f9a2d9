"""NCE and NCE+: value, optimum, minimiser, gradients, extremes."""

import math

import pytest
import torch

from mmdet_ebm.core import NCE, NCEPlus, noise_logprob

SIGMAS = (0.1, 0.8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_value_equals_a_softmax_written_out():
    """The candidates are observed through the log-density function."""
    targets = torch.randn(3, 4, dtype=torch.float64)
    seen = []

    def logdensity(y):
        seen.append(y)
        return -y.square().sum(-1)

    losses = NCEPlus(SIGMAS, 16, beta=0.3)(logdensity, targets, generator())
    (y, ) = seen
    assert y.shape == (3, 17, 4)
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)[:, None]
    for n in range(3):
        weights = [
            math.exp(-y[n, m].square().sum() -
                     noise_logprob(y[n, m] - targets[n], sigmas))
            for m in range(17)
        ]
        expected = -math.log(weights[0] / sum(weights))
        assert losses[n].item() == pytest.approx(expected, rel=1e-5)


def test_f_equal_to_log_q_is_chance():
    """f = log q cannot tell the target from noise: log(M + 1)."""
    noise = NCE(SIGMAS, 31).noise
    targets = torch.randn(5, 2)
    losses = NCE(SIGMAS, 31)(lambda y: noise.logprob(y - targets[:, None]),
                             targets)
    torch.testing.assert_close(losses, torch.full((5, ), math.log(32)))


def test_nce_plus_without_shift_is_nce():
    targets = torch.randn(4, 3)
    logdensity = lambda y: -y.abs().sum(-1)  # noqa: E731
    plus = NCEPlus(SIGMAS, 8, beta=0.0)(logdensity, targets, generator(2))
    plain = NCE(SIGMAS, 8)(logdensity, targets, generator(2))
    assert torch.equal(plus, plain)


def test_positive_is_shifted_by_beta_times_the_noise():
    """n = 20,000 positives; their variance within 5 standard errors."""
    n, beta = 20_000, 0.5
    seen = []
    NCEPlus(SIGMAS, 1, beta)(lambda y: seen.append(y) or y.sum(-1),
                             torch.zeros(n, 1), generator())
    shift = seen[0][:, 0, 0]
    widths = beta * torch.tensor(SIGMAS)
    variance = widths.square().mean()
    error = ((3 * widths.pow(4).mean() - variance**2) / n).sqrt()
    assert (shift.var() - variance).abs() < 5 * error


@pytest.mark.parametrize('beta, dim', [(0.0, 1), (0.0, 4), (0.5, 1)])
def test_minimiser_has_the_known_variance(beta, dim):
    """f = -a |y|^2 / 2 fitted to N(0, s^2): 1/a is s^2 + beta^2 mean sigma^2.

    That holds as M grows (the candidates' sum becomes an importance-sampled
    normaliser); with M = 32 and D = 4 the fit is 17 % too narrow. The sampling
    error of 4,000 targets is 2 % (one standard deviation, D = 1).
    """
    s, sigmas = 0.3, (0.2, 0.6)
    targets = s * torch.randn(4000, dim, generator=generator(1))
    # The sampled variance is what the fit can know.
    sample = targets.square().mean().item()
    log_precision = torch.zeros((), requires_grad=True)
    method = NCEPlus(sigmas, 1024, beta)
    optimiser = torch.optim.LBFGS([log_precision], max_iter=8,
                                  line_search_fn='strong_wolfe')

    def closure():
        optimiser.zero_grad()
        energy = lambda y: -0.5 * log_precision.exp(  # noqa: E731
        ) * y.square().sum(-1)
        loss = method(energy, targets, generator(2)).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    variance = (-log_precision).exp().item()
    expected = sample + beta**2 * sum(v**2 for v in sigmas) / 2
    assert variance == pytest.approx(expected, rel=0.05)


def test_gradcheck_in_what_the_log_density_depends_on():
    targets = torch.randn(2, 3, dtype=torch.float64)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    method = NCEPlus(SIGMAS, 5, beta=0.2)
    assert torch.autograd.gradcheck(
        lambda w: method(lambda y: (y.sin() * w).sum(-1), targets,
                         generator()), (weight, ))


def test_no_instances_give_a_zero_with_a_graph():
    weight = torch.ones(4, requires_grad=True)
    losses = NCE(SIGMAS, 8)(lambda y: (y * weight).sum(-1), torch.zeros(0, 4))
    assert losses.shape == (0, )
    losses.sum().backward()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize('scale', [1e4, -1e4])
def test_extreme_log_densities_stay_finite(scale):
    weight = torch.tensor(float(scale), requires_grad=True)
    losses = NCE(SIGMAS, 64)(lambda y: weight * y.sum(-1), torch.ones(3, 4),
                             generator())
    losses.sum().backward()
    assert losses.isfinite().all() and weight.grad.isfinite()


def test_targets_are_not_changed():
    targets = torch.randn(3, 4)
    before = targets.clone()
    NCEPlus(SIGMAS, 8, 0.1)(lambda y: y.sum(-1), targets)
    assert torch.equal(targets, before)


@pytest.mark.parametrize('arguments', [dict(num_samples=0, beta=0.1),
                                       dict(num_samples=8, beta=-0.1),
                                       dict(num_samples=8, beta=math.nan)])
def test_invalid_settings_are_refused(arguments):
    with pytest.raises(ValueError, match='num_samples|beta'):
        NCEPlus(SIGMAS, **arguments)
