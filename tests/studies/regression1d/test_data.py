"""The toy problems: densities against scipy, samples against densities."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from studies.regression1d.data import PROBLEMS, draw_points, get_problem

X = np.linspace(-3, 3, 41)
Y = np.linspace(-3, 3, 301)


def expected_density(dataset, x, y):
    if dataset == 2:
        return stats.norm(np.sin(x), 0.15 / (1 + np.exp(-x))).pdf(y)
    if x < 0:
        return 0.8 * stats.norm(np.sin(x), 0.075).pdf(y) + 0.2 * stats.norm(
            -np.sin(x), 0.075
        ).pdf(y)
    return stats.lognorm(s=0.25, scale=1.0, loc=-1).pdf(y)


@pytest.mark.parametrize('dataset', PROBLEMS)
def test_density_is_scipys(dataset):
    logprob = get_problem(dataset).logprob(
        torch.from_numpy(X)[:, None], torch.from_numpy(Y)
    )
    expected = np.stack([expected_density(dataset, x, Y) for x in X])
    np.testing.assert_allclose(logprob.exp(), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize('dataset', PROBLEMS)
@pytest.mark.parametrize('x', [-2.0, -0.3, 0.0, 1.5])
def test_samples_follow_the_density(dataset, x):
    """Kolmogorov-Smirnov, 5,000 draws; a fixed seed, one in 1,000 fails."""
    generator = torch.Generator().manual_seed(3)
    draws = get_problem(dataset).sample(
        torch.full((5000,), x, dtype=torch.float64), generator
    )
    fine = np.linspace(-3, 3, 20001)
    cdf = np.cumsum(expected_density(dataset, x, fine)) * (fine[1] - fine[0])
    assert (
        stats.kstest(draws.numpy(), lambda y: np.interp(y, fine, cdf)).pvalue
        > 1e-3
    )


def test_label_noise_is_added_to_the_same_points():
    """4,000 points: the width within 5 standard errors."""
    problem = PROBLEMS[2]
    clean, noisy = (
        draw_points(problem, 4000, torch.Generator().manual_seed(0), noise)
        for noise in (0.0, 0.1)
    )
    assert torch.equal(clean[0], noisy[0])
    error = 0.1 / math.sqrt(2 * 4000)
    assert abs((noisy[1] - clean[1]).std() - 0.1) < 5 * error
    assert clean[0].min() >= -3 and clean[0].max() <= 3


def test_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match=r'one of \[1, 2\], got 3'):
        get_problem(3)
