"""Draws from one generator, or from one generator for each part of a batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Several generators: each supplies an equal share of the first dimension, so
# that models that train together in one batch keep their own random streams.
Generators = torch.Generator | Sequence[torch.Generator] | None


def draw(
    sampler: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators,
    **options,
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
