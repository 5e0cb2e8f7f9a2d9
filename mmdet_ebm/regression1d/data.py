r"""The two toy problems: densities p(y | x) that are known exactly.

x is uniform on [-3, 3].

1. x < 0: :math:`0.8\, \mathcal{N}(\sin x, 0.075^2) +
   0.2\, \mathcal{N}(-\sin x, 0.075^2)`;
   x >= 0: y + 1 is lognormal with mu 0 and sigma 0.25.
2. :math:`\mathcal{N}(\sin x, (0.15 / (1 + e^{-x}))^2)`.

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, section 4.1 and its supplement.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

X_MIN, X_MAX = -3.0, 3.0

_BRANCH_WEIGHTS = (0.8, 0.2)
_BRANCH_SIGMA = 0.075
_LOG_SIGMA = 0.25


class Problem(NamedTuple):
    """A toy problem.

    Attributes:
        sample: (x (...), generator) -> y (...), one draw for each x.
        logprob: (x, y), broadcast -> log p(y | x).
    """

    sample: Callable[[Tensor, torch.Generator | None], Tensor]
    logprob: Callable[[Tensor, Tensor], Tensor]


def normal_logprob(y: Tensor, mean: Tensor, sigma) -> Tensor:
    """log N(y; mean, sigma^2), all broadcast."""
    sigma = torch.as_tensor(sigma, dtype=y.dtype, device=y.device)
    return (
        -0.5 * ((y - mean) / sigma).square()
        - sigma.log()
        - 0.5 * math.log(2 * math.pi)
    )


def _sample_two_branches(x, generator):
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    choice = torch.rand(x.shape, dtype=x.dtype, generator=generator)
    sign = torch.where(choice < _BRANCH_WEIGHTS[0], 1.0, -1.0)
    normal = sign * x.sin() + _BRANCH_SIGMA * noise
    return torch.where(x < 0, normal, (_LOG_SIGMA * noise).exp() - 1)


def _two_branches_logprob(x, y):
    branches = torch.stack(
        [
            math.log(weight) + normal_logprob(y, sign * x.sin(), _BRANCH_SIGMA)
            for weight, sign in zip(_BRANCH_WEIGHTS, (1.0, -1.0))
        ]
    )
    # Clamped only where the density is zero, so that log stays finite there.
    log_y = (y + 1).clamp(min=torch.finfo(y.dtype).tiny).log()
    lognormal = normal_logprob(log_y, torch.zeros_like(y), _LOG_SIGMA) - log_y
    lognormal = torch.where(y > -1, lognormal, -math.inf)
    return torch.where(x < 0, branches.logsumexp(0), lognormal)


def _sine_sigma(x):
    return 0.15 * x.sigmoid()


def _sample_sine(x, generator):
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    return x.sin() + _sine_sigma(x) * noise


def _sine_logprob(x, y):
    return normal_logprob(y, x.sin(), _sine_sigma(x))


PROBLEMS = {
    1: Problem(_sample_two_branches, _two_branches_logprob),
    2: Problem(_sample_sine, _sine_logprob),
}


def get_problem(dataset: int) -> Problem:
    """The toy problem of this number.

    Raises:
        ValueError: If there is none.
    """
    if dataset not in PROBLEMS:
        raise ValueError(
            f'data set must be one of {sorted(PROBLEMS)}, got {dataset!r}'
        )
    return PROBLEMS[dataset]


def draw_points(
    problem: Problem,
    num_points: int,
    generator: torch.Generator | None = None,
    label_noise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """A training set.

    Args:
        problem: Where the targets come from.
        num_points: How many points.
        generator: Source of randomness, on the CPU.
        label_noise: Standard deviation of Gaussian noise added to targets.
            The points below the noise do not depend on it.

    Returns:
        x (num_points,), uniform on [-3, 3], and y (num_points,).
    """
    x = X_MIN + (X_MAX - X_MIN) * torch.rand(num_points, generator=generator)
    y = problem.sample(x, generator)
    noise = torch.randn(num_points, generator=generator)
    return x, y + label_noise * noise
