"""What a training step already knows of the model: truth against noise."""

import torch
from torch import Tensor, nn

from .types import LogDensityFn


class RecordedLogDensity:
    """A log-density function that remembers its last values.

    Args:
        logdensity_fn: y (N, S, D) -> f (N, S); called and differentiated as
            ever.
    """

    def __init__(self, logdensity_fn: LogDensityFn) -> None:
        self.logdensity_fn = logdensity_fn
        self.values: Tensor | None = None

    def __call__(self, y: Tensor) -> Tensor:
        values = self.logdensity_fn(y)
        self.values = values.detach()
        return values


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
    def mean(values):
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


def training_figures(
    method: nn.Module,
    record: RecordedLogDensity,
    targets: Tensor,
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """:func:`separation` of the values of f that a loss has just computed.

    Methods with ``truth_is_first`` evaluated the truth (NCE+ with its shift)
    as their first candidate. For the others it costs one candidate more,
    without a graph.

    Args:
        method: The training method, called last with ``record``.
        record: Around the log-density.
        targets: (N, D) that the method was called with.
        weight: (N,) weights of the instances.

    Returns:
        The figures; none for a method that does not say where its truth is.
    """
    if getattr(method, 'truth_is_first', None) is None:
        return {}
    values = record.values
    if method.truth_is_first:
        return separation(values[:, 0], values[:, 1:], weight)
    with torch.no_grad():
        truth = record.logdensity_fn(targets[:, None])[:, 0]
    return separation(truth, values, weight)
