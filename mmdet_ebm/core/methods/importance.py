r"""Two losses that replace the normaliser by importance sampling.

With :math:`y_m \sim q(\cdot - y)`, M of them, the estimate of log Z is

.. math:: \log \hat Z = \log \tfrac{1}{M} \sum_m
          \exp(f(y_m) - \log q(y_m - y)) .

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, sections 2.1 (ML-IS) and 2.2 (KLD-IS).
"""

import math

import torch
from torch import Tensor, nn

from ..checks import positive, positive_int
from ..diagnostics import logdensity_at
from ..noise import GaussianMixtureNoise, Generators, Sigmas
from ..types import LogDensityFn, LossInfo


class MLIS(nn.Module):
    r"""Negative log-likelihood, :math:`\log \hat Z - f(y)`.

    Args:
        sigmas: Widths of q, see ``GaussianMixtureNoise``.
        num_samples: M, samples per instance.

    Raises:
        ValueError: If ``num_samples`` < 1 or a width is not positive.
    """

    needs_curvature = False

    def __init__(self, sigmas: Sigmas, num_samples: int) -> None:
        super().__init__()
        self.noise = GaussianMixtureNoise(sigmas)
        self.num_samples = positive_int('num_samples', num_samples)
        self.num_candidates = 1 + num_samples

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, LossInfo]:
        """Losses (N,) and info of the candidates (N, 1 + M)."""
        n, dim = targets.shape
        offsets = self.noise.sample(
            (n, self.num_samples, dim), targets, generator=generator
        )
        candidates = targets[:, None] + torch.cat(
            [torch.zeros_like(targets)[:, None], offsets], 1
        )
        logdensity = logdensity_fn(candidates)
        log_weights = logdensity[:, 1:] - self.noise.logprob(offsets)
        losses = (
            log_weights.logsumexp(1)
            - math.log(self.num_samples)
            - logdensity[:, 0]
        )
        values = logdensity.detach()
        return losses, LossInfo(values[:, 0], values[:, 1:])

    def extra_repr(self) -> str:
        return f'num_samples={self.num_samples}'


class KLDIS(nn.Module):
    r"""Divergence from a Gaussian around the target to the model.

    .. math:: \log \hat Z - \tfrac{1}{M} \sum_m f(y_m)
              \frac{\mathcal{N}(y_m; y, \sigma_{gt}^2)}{q(y_m - y)} ,

    which estimates :math:`D_{KL}(\mathcal{N}(y, \sigma_{gt}^2) \| p)` plus the
    Gaussian's entropy.

    Args:
        sigmas: Widths of q, see ``GaussianMixtureNoise``.
        num_samples: M, samples per instance.
        sigma_gt: Width of the Gaussian around the target.

    Raises:
        ValueError: If a number is not positive.
    """

    needs_curvature = False

    def __init__(
        self, sigmas: Sigmas, num_samples: int, sigma_gt: float
    ) -> None:
        super().__init__()
        self.noise = GaussianMixtureNoise(sigmas)
        self.label = GaussianMixtureNoise([positive('sigma_gt', sigma_gt)])
        self.num_samples = positive_int('num_samples', num_samples)
        self.num_candidates = num_samples

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, LossInfo]:
        """Losses (N,) and info of the candidates (N, M)."""
        n, dim = targets.shape
        offsets = self.noise.sample(
            (n, self.num_samples, dim), targets, generator=generator
        )
        logdensity = logdensity_fn(targets[:, None] + offsets)
        logprob = self.noise.logprob(offsets)
        ratio = (self.label.logprob(offsets) - logprob).exp()
        losses = (
            (logdensity - logprob).logsumexp(1)
            - math.log(self.num_samples)
            - (logdensity * ratio).mean(1)
        )
        return losses, LossInfo(
            logdensity_at(logdensity_fn, targets), logdensity.detach()
        )

    def extra_repr(self) -> str:
        return f'num_samples={self.num_samples}'
