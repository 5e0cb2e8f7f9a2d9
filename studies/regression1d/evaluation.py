r"""How far a learned density is from the true one, on a grid.

.. math:: D_{KL}(p \| p_\theta) = \frac{1}{G} \sum_i \sum_j p_{ij}
          (\log p_{ij} - \log p_{\theta,ij}),

where p and the model's density are normalised over the G values of y, for each
of the G values of x. The true density gets 1e-30 added before.

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, section 4.1; the grid is that of its published code.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .data import X_MAX, X_MIN, Problem
from .networks import (
    EnsembleNetwork,
    candidates_per_pass,
    ensemble_logdensity_fn,
)


def grid(size: int, device: torch.device = torch.device('cpu')) -> Tensor:
    """``size`` points from -3 to 3, the same for x and y."""
    return torch.linspace(X_MIN, X_MAX, size, device=device)


def true_grid_density(problem: Problem, x: Tensor, y: Tensor) -> Tensor:
    """p(y | x) on a grid, normalised over y.

    Args:
        problem: The toy problem.
        x: (G,).
        y: (H,).

    Returns:
        (G, H) in float64; rows sum to 1.
    """
    density = problem.logprob(x.double()[:, None], y.double()).exp() + 1e-30
    return density / density.sum(1, keepdim=True)


def kl_divergence(truth: Tensor, log_model: Tensor) -> Tensor:
    """sum p (log p - log model) over the last dimension, in float64.

    Args:
        truth: (..., H), positive; rows sum to 1.
        log_model: (..., H), of any dtype.
    """
    return (truth * (truth.log() - log_model)).sum(-1)


@torch.no_grad()
def evaluate(
    network: EnsembleNetwork,
    problem: Problem,
    grid_size: int = 2048,
    x_stride: int = 1,
    num_threads: int = 1,
) -> Tensor:
    """D_KL(true || model) of every model.

    Args:
        network: E models.
        problem: The toy problem.
        grid_size: Points of the grid in x and in y.
        x_stride: Use every x_stride-th value of x: 8 gives a good estimate
            at an eighth of the cost.
        num_threads: Models that are evaluated at the same time.

    Returns:
        (E,) in float64, on the CPU.
    """
    device = next(network.parameters()).device
    y = grid(grid_size, device)
    x = grid(grid_size, device)[::x_stride]
    truth = true_grid_density(problem, x, y)
    # sum p log p once, not once for each model.
    negative_entropy = kl_divergence(truth, torch.zeros_like(truth)).mean()
    truth = truth.float()

    def cross_entropy(model: int) -> Tensor:
        total = 0.0
        for part, logdensity in _log_softmax_rows(
            network, slice(model, model + 1), x, y
        ):
            total = total - (truth[part] * logdensity).sum(dtype=torch.float64)
        return total / len(x)

    models = range(network.out_bias.shape[0])
    with ThreadPoolExecutor(num_threads) as pool:
        values = list(pool.map(torch.no_grad()(cross_entropy), models))
    return (torch.stack(values) + negative_entropy).cpu()


@torch.no_grad()
def learned_grid_logdensity(
    network: EnsembleNetwork, model: int, x: Tensor, y: Tensor
) -> Tensor:
    """log p of one model, normalised over y: x (G,), y (H,) -> (G, H)."""
    rows = _log_softmax_rows(network, slice(model, model + 1), x, y)
    return torch.cat([logdensity for _, logdensity in rows])


def _log_softmax_rows(network, models, x, y):
    """Rows of log-softmax over y, some values of x at a time."""
    parameters = {name: p[models] for name, p in network.named_parameters()}
    step = max(1, candidates_per_pass(x.device) // len(y))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        rows = x[part]
        candidates = y.expand(len(rows), -1)[..., None]
        logdensity = ensemble_logdensity_fn(parameters, rows[None])(candidates)
        yield part, logdensity.log_softmax(1)
