r"""The noise around a target: a mixture of zero-mean Gaussians.

.. math:: q(\delta) = \frac{1}{K} \sum_k \mathcal{N}(\delta; 0, \Sigma_k),
          \qquad \Sigma_k = \mathrm{diag}(\sigma_k^2),

with ``sigmas`` of shape (K, D), or (K, 1) for the same width in every
dimension. Samples are drawn and evaluated for all instances at once, on the
device of ``sigmas``.

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, equation 10.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

# Several generators: each supplies an equal share of the first dimension, so
# that models that train together in one batch keep their own random streams.
Generators = torch.Generator | Sequence[torch.Generator] | None


# Widths: one number for each component, or a row of D of them.
Sigmas = Sequence[float | Sequence[float]]


def draw(
    sampler: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators,
    **options: Any,
) -> Tensor:
    """Call ``sampler(shape, generator=..., **options)``.

    Args:
        sampler: ``torch.randn``, or a function called like it.
        shape: (N, ...).
        generator: Source of randomness; the device's global one without it.
            Of P generators, the p-th supplies rows p N / P to (p + 1) N / P.
        options: Passed on, ``dtype`` and ``device`` for example.

    Raises:
        ValueError: If N is not a multiple of the number of generators.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return sampler(tuple(shape), generator=generator, **options)
    if not generator or shape[0] % len(generator):
        raise ValueError(
            'expected a first dimension that is a multiple of '
            f'the number of generators, got shape {tuple(shape)} '
            f'and {len(generator)} generators'
        )
    part = (shape[0] // len(generator), *shape[1:])
    return torch.cat(
        [sampler(part, generator=single, **options) for single in generator]
    )


def sample_noise(
    shape: Sequence[int], sigmas: Tensor, generator: Generators = None
) -> Tensor:
    """Draw independent offsets from the mixture.

    Args:
        shape: (..., D); one component is drawn for each vector of the last
            dimension.
        sigmas: (K, D) or (K, 1).
        generator: Source of randomness, see :func:`draw`.

    Returns:
        Offsets of the given shape.
    """
    options = dict(device=sigmas.device)
    component = draw(
        partial(torch.randint, sigmas.shape[0]),
        shape[:-1],
        generator,
        **options,
    )
    normal = draw(torch.randn, shape, generator, dtype=sigmas.dtype, **options)
    return normal.mul_(sigmas[component])  # fresh memory would cost more


def quasi_random_noise(
    num_samples: int, sigmas: Tensor, dim: int, seed: int = 0
) -> Tensor:
    """Offsets that fill the mixture more evenly than independent draws.

    Scrambled Sobol points: one coordinate picks the component, the others go
    through the inverse of the Gaussian's distribution function. The same
    arguments give the same offsets, whatever the global seed; powers of two
    are the most even.

    Args:
        num_samples: M.
        sigmas: (K, D) or (K, 1).
        dim: D.
        seed: Seed of the scrambling.

    Returns:
        (M, D).
    """
    points = (
        SobolEngine(1 + dim, scramble=True, seed=seed)
        .draw(num_samples, dtype=torch.float64)
        .to(sigmas.device)
    )
    component = (points[:, 0] * len(sigmas)).long().clamp(max=len(sigmas) - 1)
    normal: Tensor = torch.special.ndtri(points[:, 1:].clamp(1e-9, 1 - 1e-9))
    return sigmas[component] * normal.to(sigmas.dtype)


def noise_logprob(offsets: Tensor, sigmas: Tensor) -> Tensor:
    """log q of offsets (..., D) under the mixture, of shape (...)."""
    dim = offsets.shape[-1]
    normaliser = (
        sigmas.expand(-1, dim).log().sum(-1)
        + 0.5 * dim * math.log(2 * math.pi)
        + math.log(sigmas.shape[0])
    )
    squares = offsets.square()
    if sigmas.shape[1] == 1:  # a width for all dimensions: once for all sigmas
        squares = squares.sum(-1, keepdim=True)
    # One component at a time: there are few, and every pass over the offsets
    # is contiguous, unlike a sum over a short dimension of components. (And
    # torch.logaddexp is several times slower than exp and log.)
    parts = [
        -(squares * (0.5 / sigma.square())).sum(-1) - constant
        for sigma, constant in zip(sigmas, normaliser)
    ]
    largest = reduce(torch.maximum, parts).detach()
    largest = largest.clamp(min=torch.finfo(largest.dtype).min)
    total: Tensor = sum((part - largest).exp() for part in parts)
    return total.log() + largest


class GaussianMixtureNoise(nn.Module):
    """The mixture as a module, so that its widths follow the model's device.

    Args:
        sigmas: One standard deviation per component, the same in every
            dimension, or one row of D of them per component.

    Raises:
        ValueError: If ``sigmas`` is empty, ragged, or not positive and
            finite.
    """

    sigmas: Tensor

    def __init__(self, sigmas: Sigmas) -> None:
        super().__init__()
        try:
            values = torch.tensor(sigmas, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                'sigmas must be numbers, or rows of equally many '
                f'numbers; got {sigmas}'
            ) from error
        if values.dim() == 1:
            values = values[:, None]
        if (
            values.dim() != 2
            or values.numel() == 0
            or not ((values > 0) & values.isfinite()).all()
        ):
            raise ValueError(
                'sigmas must hold at least one component and be '
                f'positive and finite; got {sigmas}'
            )
        self.register_buffer('sigmas', values, persistent=False)

    def sample(
        self,
        shape: Sequence[int],
        like: Tensor,
        scale: float = 1.0,
        generator: Generators = None,
    ) -> Tensor:
        """Offsets (..., D) in ``like``'s dtype; sigmas times ``scale``."""
        return sample_noise(
            shape, self.sigmas.to(like.dtype) * scale, generator
        )

    def logprob(self, offsets: Tensor) -> Tensor:
        """log q of offsets (..., D)."""
        return noise_logprob(offsets, self.sigmas.to(offsets.dtype))

    def extra_repr(self) -> str:
        return f'sigmas={self.sigmas.tolist()}'
