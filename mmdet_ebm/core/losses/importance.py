r"""Two losses that replace the normaliser by importance sampling.

With :math:`y_m \sim q(\cdot - y)`, M of them, the estimate of log Z is

.. math:: \log \hat Z = \log \tfrac{1}{M} \sum_m
          \exp(f(y_m) - \log q(y_m - y)) .

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, sections 2.1 (ML-IS) and 2.2 (KLD-IS).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..noise import GaussianMixtureNoise
from ..random import Generators
from ..types import LogDensityFn
from .checks import positive, positive_int
from .sampling import SamplingMethod


class MLIS(SamplingMethod):
    r"""Negative log-likelihood, :math:`\log \hat Z - f(y)`.

    Args:
        sigmas: Widths of q, see ``GaussianMixtureNoise``.
        num_samples: M, samples per instance.

    Raises:
        ValueError: If ``num_samples`` < 1 or a width is not positive.
    """

    truth_is_first = True  # of the candidates it evaluates

    def __init__(self, sigmas: Sequence, num_samples: int) -> None:
        super().__init__()
        self.noise = GaussianMixtureNoise(sigmas)
        self.num_samples = positive_int('num_samples', num_samples)

    def draw(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, ...]:
        """Truth and samples (N, 1 + M, D), and log q of the samples."""
        n, dim = targets.shape
        offsets = self.noise.sample(
            (n, self.num_samples, dim), targets, generator=generator
        )
        candidates = targets[:, None] + torch.cat(
            [torch.zeros_like(targets)[:, None], offsets], 1
        )
        return candidates, self.noise.logprob(offsets)

    def losses(self, logdensity: Tensor, logprob: Tensor) -> Tensor:
        """Losses (N,) of f (N, 1 + M) and log q (N, M)."""
        log_weights = logdensity[:, 1:] - logprob
        return (
            log_weights.logsumexp(1)
            - math.log(self.num_samples)
            - logdensity[:, 0]
        )

    def extra_repr(self) -> str:
        return f'num_samples={self.num_samples}'


class KLDIS(SamplingMethod):
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

    truth_is_first = False  # evaluates noise alone

    def __init__(
        self, sigmas: Sequence, num_samples: int, sigma_gt: float
    ) -> None:
        super().__init__()
        self.noise = GaussianMixtureNoise(sigmas)
        self.label = GaussianMixtureNoise([positive('sigma_gt', sigma_gt)])
        self.num_samples = positive_int('num_samples', num_samples)

    def draw(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, ...]:
        """Samples (N, M, D), their log q and the label's density over q."""
        n, dim = targets.shape
        offsets = self.noise.sample(
            (n, self.num_samples, dim), targets, generator=generator
        )
        logprob = self.noise.logprob(offsets)
        ratio = (self.label.logprob(offsets) - logprob).exp()
        return targets[:, None] + offsets, logprob, ratio

    def losses(
        self, logdensity: Tensor, logprob: Tensor, ratio: Tensor
    ) -> Tensor:
        """Losses (N,) of f, log q and the ratio of densities (N, M)."""
        return (
            (logdensity - logprob).logsumexp(1)
            - math.log(self.num_samples)
            - (logdensity * ratio).mean(1)
        )

    def extra_repr(self) -> str:
        return f'num_samples={self.num_samples}'
