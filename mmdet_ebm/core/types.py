"""What models, training methods and ascents agree on."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# Candidates y (N, S, D) -> log-densities f (N, S): N instances with S
# candidates each.
LogDensityFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LossInfo:
    """Log-densities that a training method saw, without a graph.

    Attributes:
        truth: (N,) f at the truth; for NCE+ at its shifted copy.
        noise: (N, M) f at the method's samples; M = 0 where there are none.
    """

    truth: Tensor
    noise: Tensor
