"""NCE and NCE+: value, optimum, the shift of the positive."""

import math

import pytest
import torch

from mmdet_ebm.core import NCE, NCEPlus, noise_logprob

from ..conftest import generator

SIGMAS = (0.1, 0.8)


def test_value_equals_a_softmax_written_out():
    """The candidates are observed through the log-density function."""
    targets = torch.randn(3, 4, dtype=torch.float64)
    seen = []

    def logdensity(y):
        seen.append(y)
        return -y.square().sum(-1)

    losses, _ = NCEPlus(SIGMAS, 16, beta=0.3)(logdensity, targets, generator())
    (y,) = seen
    assert y.shape == (3, 17, 4)
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)[:, None]
    for n in range(3):
        weights = [
            math.exp(
                -y[n, m].square().sum()
                - noise_logprob(y[n, m] - targets[n], sigmas)
            )
            for m in range(17)
        ]
        expected = -math.log(weights[0] / sum(weights))
        assert losses[n].item() == pytest.approx(expected, rel=1e-5)


def test_f_equal_to_log_q_is_chance():
    """f = log q cannot tell the target from noise: log(M + 1)."""
    noise = NCE(SIGMAS, 31).noise
    targets = torch.randn(5, 2)
    losses, _ = NCE(SIGMAS, 31)(
        lambda y: noise.logprob(y - targets[:, None]), targets
    )
    torch.testing.assert_close(losses, torch.full((5,), math.log(32)))


def test_nce_plus_without_shift_is_nce():
    targets = torch.randn(4, 3)
    logdensity = lambda y: -y.abs().sum(-1)
    plus, _ = NCEPlus(SIGMAS, 8, beta=0.0)(logdensity, targets, generator(2))
    plain, _ = NCE(SIGMAS, 8)(logdensity, targets, generator(2))
    assert torch.equal(plus, plain)


def test_positive_is_shifted_by_beta_times_the_noise():
    """n = 20,000 positives; their variance within 5 standard errors."""
    n, beta = 20_000, 0.5
    seen = []
    NCEPlus(SIGMAS, 1, beta)(
        lambda y: seen.append(y) or y.sum(-1), torch.zeros(n, 1), generator()
    )
    shift = seen[0][:, 0, 0]
    widths = beta * torch.tensor(SIGMAS)
    variance = widths.square().mean()
    error = ((3 * widths.pow(4).mean() - variance**2) / n).sqrt()
    assert (shift.var() - variance).abs() < 5 * error


@pytest.mark.parametrize(
    'arguments',
    [
        dict(num_samples=0, beta=0.1),
        dict(num_samples=8, beta=-0.1),
        dict(num_samples=8, beta=math.nan),
    ],
)
def test_invalid_settings_are_refused(arguments):
    with pytest.raises(ValueError, match='num_samples|beta'):
        NCEPlus(SIGMAS, **arguments)
