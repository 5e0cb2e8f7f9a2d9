"""Maximum likelihood with samples from a Markov chain."""

import torch
from torch import Tensor, nn

from ..checks import positive, positive_int
from ..langevin import langevin_chain
from ..noise import Generators
from ..types import LogDensityFn, LossInfo


class MLMCMC(nn.Module):
    r"""ML-MCMC-L, :math:`\tfrac{1}{M} \sum_m f(y_m) - f(y)`.

    Its gradient estimates that of the negative log-likelihood, with
    :math:`y_m` from M Langevin chains of L steps that start at the target; its
    value says nothing. The chains carry no gradient.

    Args:
        step_size: lambda of :func:`langevin_chain`.
        num_steps: L.
        num_samples: M, chains per instance.

    Raises:
        ValueError: If a number is not positive.

    Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
    arXiv 2005.01698, section 2.3.
    """

    needs_curvature = False

    def __init__(
        self, step_size: float, num_steps: int, num_samples: int
    ) -> None:
        super().__init__()
        self.step_size = positive('step_size', step_size)
        self.num_steps = positive_int('num_steps', num_steps)
        self.num_samples = positive_int('num_samples', num_samples)
        self.num_candidates = 1 + num_samples

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, LossInfo]:
        """Losses (N,) and info of the target and the chains' ends."""
        start = targets[:, None]
        samples = langevin_chain(
            logdensity_fn,
            start.expand(-1, self.num_samples, -1).contiguous(),
            self.step_size,
            self.num_steps,
            generator,
        )
        logdensity = logdensity_fn(torch.cat([start, samples], 1))
        losses = logdensity[:, 1:].mean(1) - logdensity[:, 0]
        values = logdensity.detach()
        return losses, LossInfo(values[:, 0], values[:, 1:])

    def extra_repr(self) -> str:
        return (
            f'step_size={self.step_size}, num_steps={self.num_steps}, '
            f'num_samples={self.num_samples}'
        )
