"""Langevin dynamics: approximate samples of exp(f)."""

import torch
from torch import Tensor

from .noise import Generators, draw
from .types import LogDensityFn


def langevin_chain(
    logdensity_fn: LogDensityFn,
    init: Tensor,
    step_size: float,
    num_steps: int,
    generator: Generators = None,
) -> Tensor:
    r"""Run one unadjusted Langevin chain from every candidate.

    .. math:: y \leftarrow y + \tfrac{\lambda^2}{2} \nabla_y f(y)
              + \lambda \epsilon, \qquad \epsilon \sim \mathcal{N}(0, I)

    All chains advance together. Only the gradient in y is computed:
    parameters that f depends on keep their gradients as they are, and the
    result carries no graph.

    Args:
        logdensity_fn: y (N, S, D) -> f (N, S). Candidates must not influence
            each other's values.
        init: (N, S, D) where the chains start.
        step_size: lambda.
        num_steps: L.
        generator: Source of randomness, see :func:`draw`.

    Returns:
        (N, S, D), where the chains end.

    Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
    arXiv 2005.01698, equation 7.
    """
    y = init.detach()
    with torch.enable_grad():
        for _ in range(num_steps):
            y = y.requires_grad_()
            (grad,) = torch.autograd.grad(logdensity_fn(y).sum(), y)
            noise = draw(
                torch.randn, y.shape, generator, dtype=y.dtype, device=y.device
            )
            y = y.detach() + 0.5 * step_size**2 * grad + step_size * noise
    return y
