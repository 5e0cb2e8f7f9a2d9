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
from torch.distributions import (
    Categorical,
    LogNormal,
    MixtureSameFamily,
    Normal,
)

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

    # By hand: torch.distributions draws from the global generator alone.
    sample: Callable[[Tensor, torch.Generator | None], Tensor]
    logprob: Callable[[Tensor, Tensor], Tensor]


def _sample_two_branches(x, generator):
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    choice = torch.rand(x.shape, dtype=x.dtype, generator=generator)
    sign = torch.where(choice < _BRANCH_WEIGHTS[0], 1.0, -1.0)
    normal = sign * x.sin() + _BRANCH_SIGMA * noise
    return torch.where(x < 0, normal, (_LOG_SIGMA * noise).exp() - 1)


def _two_branches_logprob(x, y):
    means = torch.stack([x.sin(), -x.sin()], -1)
    branches = MixtureSameFamily(
        Categorical(means.new_tensor(_BRANCH_WEIGHTS).expand_as(means)),
        Normal(means, _BRANCH_SIGMA),
    )
    # Clamped only where the density is zero: log is finite there too.
    positive = (y + 1).clamp(min=torch.finfo(y.dtype).tiny)
    lognormal = LogNormal(y.new_zeros(()), _LOG_SIGMA).log_prob(positive)
    lognormal = torch.where(y > -1, lognormal, -math.inf)
    return torch.where(x < 0, branches.log_prob(y), lognormal)


def _sine(x):
    return Normal(x.sin(), 0.15 * x.sigmoid())


def _sample_sine(x, generator):
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    return _sine(x).mean + _sine(x).stddev * noise


def _sine_logprob(x, y):
    return _sine(x).log_prob(y)


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
