"""D_KL on the grid: closed forms, chunks, large values of f."""

import math

import pytest
import torch
from torch.distributions import Normal

from studies.regression1d import evaluation
from studies.regression1d.data import PROBLEMS, Problem
from studies.regression1d.evaluation import (
    evaluate,
    grid,
    kl_divergence,
    learned_grid_logdensity,
    true_grid_density,
)
from studies.regression1d.networks import EnsembleNetwork


def network(num_models=2, scale=1.0):
    ensemble = EnsembleNetwork(num_models)
    with torch.no_grad():
        ensemble.out_weight *= scale
    return ensemble


@pytest.mark.parametrize('mean, sigma', [(0.0, 0.3), (0.4, 0.3), (-0.2, 0.7)])
def test_divergence_of_gaussians_is_the_closed_form(mean, sigma):
    """log(s2/s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2; the tails beyond
    the grid are below 1e-4."""
    y = grid(2048).double()
    truth = Normal(0.1, 0.2).log_prob(y).exp() + 1e-30
    truth = truth / truth.sum()
    model = Normal(mean, sigma).log_prob(y)
    expected = (
        math.log(sigma / 0.2)
        + (0.2**2 + (0.1 - mean) ** 2) / (2 * sigma**2)
        - 0.5
    )
    found = kl_divergence(truth, model.log_softmax(0))
    assert found.item() == pytest.approx(expected, abs=2e-4)


def test_evaluation_equals_the_definition_written_out():
    ensemble, problem, size = network(3), PROBLEMS[1], 150
    points = grid(size).double()
    p = problem.logprob(points[:, None], points).exp() + 1e-30
    p = p / p.sum(1, keepdim=True)
    f = (
        ensemble.double()
        .logdensity_fn(points.expand(3, -1))(
            points.expand(3 * size, -1)[..., None]
        )
        .view(3, size, size)
    )
    q = f.exp() / f.exp().sum(2, keepdim=True)
    expected = (p * (p / q).log()).sum(2).mean(1)
    found = evaluate(ensemble.float(), problem, grid_size=size)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


def test_chunks_and_threads_do_not_change_the_result(monkeypatch):
    ensemble = network(3)
    whole = evaluate(ensemble, PROBLEMS[2], grid_size=128)
    monkeypatch.setattr(evaluation, 'candidates_per_pass', lambda _: 300)
    parts = evaluate(ensemble, PROBLEMS[2], grid_size=128, num_threads=2)
    torch.testing.assert_close(parts, whole)


def test_perfect_model_has_no_divergence():
    uniform = Problem(sample=None, logprob=lambda x, y: 0 * (x + y))
    flat = network(1, scale=0.0)
    assert evaluate(flat, uniform, 64).abs().max() < 1e-6


def test_large_log_densities_do_not_overflow():
    """exp(f) is far outside float32, and float64."""
    divergence = evaluate(network(scale=1e5), PROBLEMS[1], 64)
    assert divergence.isfinite().all() and (divergence > 100).all()


def test_learned_density_is_normalised_over_y():
    points = grid(200)
    logdensity = learned_grid_logdensity(network(), 1, points[:7], points)
    assert logdensity.shape == (7, 200)
    torch.testing.assert_close(logdensity.exp().sum(1), torch.ones(7))


def test_true_density_is_positive_where_p_is_zero():
    points = grid(64)
    truth = true_grid_density(PROBLEMS[1], points, points)
    assert (truth > 0).all()
    torch.testing.assert_close(truth.sum(1), torch.ones(64).double())
