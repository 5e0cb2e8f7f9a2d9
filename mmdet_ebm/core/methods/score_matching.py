r"""Score matching: fit :math:`\nabla_y f`, for which no normaliser is needed.

Both losses differentiate f in y and then in the parameters. A log-density that
is piecewise linear in its features (a ReLU network) has all its curvature in
kinks, which automatic differentiation passes over: score matching would see
tr H = 0 there and denoising score matching the wrong parameter gradient, on
average. Use a smooth activation; ``needs_curvature`` marks the method that
cannot do without.

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, sections 2.5 (SM) and 2.6 (DSM).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import positive, positive_int
from ..diagnostics import logdensity_at
from ..noise import Generators, draw
from ..types import LogDensityFn, LossInfo


class SM(nn.Module):
    r"""Score matching, :math:`\mathrm{tr} \nabla_y^2 f(y)
    + \tfrac{1}{2} \|\nabla_y f(y)\|^2` at the target."""

    needs_curvature = True
    num_candidates = 1

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, LossInfo]:
        """Losses (N,) and info of the target; nothing is random here.

        ``logdensity_fn`` must be twice differentiable in y.
        """
        values, gradient, y = _gradient(logdensity_fn, targets[:, None])
        trace = torch.zeros_like(gradient[..., 0])
        # A gradient without a graph is constant in y.
        dimensions = targets.shape[1] if gradient.requires_grad else 0
        with torch.enable_grad():
            # One second derivative for each dimension, of all instances.
            for d in range(dimensions):
                (second,) = torch.autograd.grad(
                    gradient[..., d].sum(),
                    y,
                    create_graph=True,
                    materialize_grads=True,
                )
                trace = trace + second[..., d]
        losses = (trace + 0.5 * gradient.square().sum(-1))[:, 0]
        return losses, LossInfo(values[:, 0], values[:, 1:])


class DSM(nn.Module):
    r"""Denoising score matching.

    .. math:: \tfrac{1}{M} \sum_m
              \|\nabla_y f(y_m) + (y_m - y) / \sigma^2\|^2 ,
              \qquad y_m \sim \mathcal{N}(y, \sigma^2 I)

    Args:
        sigma: Width of the noise, one number or one for each dimension.
        num_samples: M, samples per instance.

    Raises:
        ValueError: If a number is not positive.
    """

    needs_curvature = False
    sigma: Tensor

    def __init__(
        self, sigma: float | Sequence[float], num_samples: int
    ) -> None:
        super().__init__()
        widths = sigma if isinstance(sigma, (list, tuple)) else [sigma]
        self.register_buffer(
            'sigma',
            torch.tensor([positive('sigma', width) for width in widths]),
            persistent=False,
        )
        self.num_samples = positive_int('num_samples', num_samples)
        self.num_candidates = num_samples

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, LossInfo]:
        """Losses (N,) and info of the samples (N, M).

        ``logdensity_fn`` must be differentiable in y.
        """
        n, dim = targets.shape
        sigma = self.sigma.to(targets.dtype)
        offsets = sigma * draw(
            torch.randn,
            (n, self.num_samples, dim),
            generator,
            dtype=targets.dtype,
            device=targets.device,
        )
        values, gradient, _ = _gradient(
            logdensity_fn, targets[:, None] + offsets
        )
        residual = gradient + offsets / sigma**2
        losses = residual.square().sum(-1).mean(1)
        return losses, LossInfo(logdensity_at(logdensity_fn, targets), values)

    def extra_repr(self) -> str:
        return f'sigma={self.sigma.tolist()}, num_samples={self.num_samples}'


def _gradient(
    logdensity_fn: LogDensityFn, y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f without a graph, its gradient in y with one, and that y."""
    y = y.detach().requires_grad_()
    with torch.enable_grad():
        values = logdensity_fn(y)
        (gradient,) = torch.autograd.grad(values.sum(), y, create_graph=True)
    return values.detach(), gradient, y
