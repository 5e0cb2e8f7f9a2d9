"""What a training step already knows of the model: truth against noise."""

import torch
from torch import Tensor

from .types import LogDensityFn


@torch.no_grad()
def logdensity_at(logdensity_fn: LogDensityFn, targets: Tensor) -> Tensor:
    """f (N,) of targets (N, D), without a graph."""
    return logdensity_fn(targets[:, None])[:, 0]


def separation(
    truth: Tensor, noise: Tensor, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """How well f tells the truth from noise, averaged over instances.

    Args:
        truth: (N,) f at the truth.
        noise: (N, M) f at noise samples around it.
        weight: (N,) weights of the instances; equal without it.

    Returns:
        Scalars without a graph: ``logdensity_truth`` and, if there is noise,
        ``logdensity_noise``, ``logdensity_gap`` (their difference) and
        ``acc_energy``, the per cent of noise samples that lie below the
        truth (50 by chance). Zero where no instance has a weight.
    """
    if weight is None:
        weight = torch.ones_like(truth)

    # Instances without a weight may have values that are not finite.
    def mean(values: Tensor) -> Tensor:
        total = torch.where(weight > 0, weight * values, 0).sum()
        return total / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)

    with torch.no_grad():
        found = dict(logdensity_truth=mean(truth))
        if noise.shape[1]:
            found['logdensity_noise'] = mean(noise.mean(1))
            found['logdensity_gap'] = (
                found['logdensity_truth'] - found['logdensity_noise']
            )
            below = (noise < truth[:, None]).to(truth.dtype)
            found['acc_energy'] = 100 * mean(below.mean(1))
    return found
