r"""Noise contrastive estimation: tell the target from samples of the noise.

With the target (plus a small shift :math:`\nu`, for NCE+) as candidate 0 and M
noise samples as candidates 1..M, the loss of an instance is

.. math:: -\log \frac{\exp(f(y_0) - \log q(y_0 - y))}
          {\sum_{m=0}^{M} \exp(f(y_m) - \log q(y_m - y))} .

The shift follows the noise with every sigma multiplied by ``beta``; the log
density of the shifted positive is that of the unscaled mixture, at the shifted
place. Beta says how inexact annotations are: 0 is NCE.

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, section 3 (NCE) and section 3.1 (NCE+).
"""

import torch
from torch import Tensor, nn

from ..checks import positive_int
from ..noise import GaussianMixtureNoise, Generators, Sigmas
from ..types import LogDensityFn, LossInfo


class NCEPlus(nn.Module):
    """NCE with a shifted positive.

    Args:
        sigmas: Widths of the noise mixture, see ``GaussianMixtureNoise``.
        num_samples: M, noise samples per instance.
        beta: Width of the positive's shift relative to the noise.

    Raises:
        ValueError: If ``num_samples`` < 1 or ``beta`` < 0.
    """

    needs_curvature = False

    def __init__(self, sigmas: Sigmas, num_samples: int, beta: float) -> None:
        super().__init__()
        if not beta >= 0:
            raise ValueError(f'beta must not be negative, got {beta}')
        self.noise = GaussianMixtureNoise(sigmas)
        self.num_samples = positive_int('num_samples', num_samples)
        self.num_candidates = 1 + num_samples
        self.beta = beta

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, LossInfo]:
        """Losses (N,), not negative, and info of the candidates (N, 1 + M)."""
        n, dim = targets.shape
        offsets = self.noise.sample(
            (n, self.num_samples, dim), targets, generator=generator
        )
        if self.beta > 0:
            shift = self.noise.sample(
                (n, 1, dim), targets, scale=self.beta, generator=generator
            )
        else:
            shift = offsets.new_zeros(n, 1, dim)
        offsets = torch.cat([shift, offsets], 1)
        logdensity = logdensity_fn(targets[:, None] + offsets)
        logits = logdensity - self.noise.logprob(offsets)
        losses = logits.logsumexp(1) - logits[:, 0]
        values = logdensity.detach()
        return losses, LossInfo(values[:, 0], values[:, 1:])

    def extra_repr(self) -> str:
        return f'num_samples={self.num_samples}, beta={self.beta}'


class NCE(NCEPlus):
    """Noise contrastive estimation; see :class:`NCEPlus` with beta = 0."""

    def __init__(self, sigmas: Sigmas, num_samples: int) -> None:
        super().__init__(sigmas, num_samples, beta=0.0)
