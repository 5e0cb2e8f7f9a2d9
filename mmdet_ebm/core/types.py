"""The one contract between models and everything that trains or uses them."""

from collections.abc import Callable

from torch import Tensor

# Candidates y (N, S, D) -> unnormalised log-densities f (N, S): N instances
# with S candidates each. Larger is better.
LogDensityFn = Callable[[Tensor], Tensor]
