"""What the methods share that evaluate f once, on candidates drawn before."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..random import Generators
from ..types import LogDensityFn


class SamplingMethod(nn.Module, ABC):
    """A method in two stages: draw candidates, then judge f at them.

    Instances do not meet in either, so that a loss of many of them can be had
    some at a time, from the same draws.
    """

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> Tensor:
        """Loss (N,) of each instance.

        Args:
            logdensity_fn: y (N, S, D) -> f (N, S) for the S candidates of the
                method.
            targets: (N, D).
            generator: Source of randomness.

        Returns:
            (N,). Gradients reach what ``logdensity_fn`` uses.
        """
        candidates, *draws = self.draw(logdensity_fn, targets, generator)
        return self.losses(logdensity_fn(candidates), *draws)

    @abstractmethod
    def draw(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, ...]:
        """Candidates (N, S, D), and what else :meth:`losses` needs of them.

        Arguments are those of :meth:`forward`. All tensors have a row for
        each instance and no graph.
        """

    @abstractmethod
    def losses(self, logdensity: Tensor, *draws: Tensor) -> Tensor:
        """Losses (N,) of any rows of f (N, S) and of the draws."""
