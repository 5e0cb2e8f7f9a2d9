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

from collections.abc import Sequence

import torch
from torch import Tensor

from ..noise import GaussianMixtureNoise
from ..random import Generators
from ..types import LogDensityFn
from .checks import positive_int
from .sampling import SamplingMethod


class NCEPlus(SamplingMethod):
    """NCE with a shifted positive.

    Args:
        sigmas: Widths of the noise mixture, see ``GaussianMixtureNoise``.
        num_samples: M, noise samples per instance.
        beta: Width of the positive's shift relative to the noise.

    Raises:
        ValueError: If ``num_samples`` < 1 or ``beta`` < 0.
    """

    truth_is_first = True  # of the candidates it evaluates

    def __init__(
        self, sigmas: Sequence, num_samples: int, beta: float
    ) -> None:
        super().__init__()
        if not beta >= 0:
            raise ValueError(f'beta must not be negative, got {beta}')
        self.noise = GaussianMixtureNoise(sigmas)
        self.num_samples = positive_int('num_samples', num_samples)
        self.beta = beta

    def draw(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, ...]:
        """Shifted truth and noise (N, 1 + M, D), and their log q."""
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
        return targets[:, None] + offsets, self.noise.logprob(offsets)

    def losses(self, logdensity: Tensor, logprob: Tensor) -> Tensor:
        """Losses (N,), not negative, of f and log q (N, 1 + M)."""
        logits = logdensity - logprob
        return logits.logsumexp(1) - logits[:, 0]

    def extra_repr(self) -> str:
        return f'num_samples={self.num_samples}, beta={self.beta}'


class NCE(NCEPlus):
    """Noise contrastive estimation; see :class:`NCEPlus` with beta = 0."""

    def __init__(self, sigmas: Sequence, num_samples: int) -> None:
        super().__init__(sigmas, num_samples, beta=0.0)
