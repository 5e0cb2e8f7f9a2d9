r"""One density of a box, given the image and the detector's box.

With d the detector's box, t the relative coordinates of a candidate around d
(so d itself is t = 0), f the learned log-density and s the spread of the
detector's own errors,

.. math:: p(y | x, d) \propto \exp(f(x, y) / T)\, \pi(t(y; d)), \qquad
          \pi(t) = (1 - a)\, \mathcal{N}(t; 0, \mathrm{diag}(s^2)) +
                   a\, \mathcal{N}(t; 0, \mathrm{diag}((b s)^2)) .

T says how far f can be trusted, s how far the detector can. Detectors err
little in most boxes and much in some: a is the share of the latter and b how
much wider they are. Where f is worthless, T grows and the box stays where it
is.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import boxes_to_relative
from .methods.iou_net import relative_iou
from .noise import quasi_random_noise
from .types import LogDensityFn

# Before anything was fitted: f counts half, and a box moves by a few per cent.
CAUTIOUS = dict(
    temperature=2.0,
    centre_std=0.03,
    size_std=0.05,
    tail_share=0.5,
    tail_factor=4.0,
)


class BoxDensity(nn.Module):
    """The numbers of the density, and what it makes of f.

    They are few floats, part of a model's state. A state without them leaves
    them as they are.

    Args:
        temperature: T.
        centre_std: s of the centre, in relative coordinates; infinite for no
            prior.
        size_std: s of the logarithm of the size.
        tail_share: a.
        tail_factor: b.
        quality_power: Exponent of the expected quality in the final score.
        fitted: Whether they were fitted on held-out images.

    Raises:
        ValueError: If a number makes no sense.
    """

    NAMES = (
        'temperature',
        'centre_std',
        'size_std',
        'tail_share',
        'tail_factor',
        'quality_power',
    )

    def __init__(
        self,
        temperature: float = 1.0,
        centre_std: float = math.inf,
        size_std: float = math.inf,
        tail_share: float = 0.0,
        tail_factor: float = 1.0,
        quality_power: float = 0.0,
        fitted: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.centre_std = centre_std
        self.size_std = size_std
        self.tail_share = tail_share
        self.tail_factor = tail_factor
        self.quality_power = quality_power
        self.fitted = fitted
        self.check()

    def check(self) -> None:
        """Raise a ValueError if a number makes no sense."""
        positive = all(
            number > 0
            for number in (self.temperature, self.centre_std, self.size_std)
        )
        if not (
            positive
            and 0 <= self.tail_share < 1 <= self.tail_factor
            and 0 <= self.quality_power < math.inf
        ):
            raise ValueError(
                'temperature, centre_std and size_std must be positive, '
                'tail_share in [0, 1), tail_factor at least 1 and '
                f'quality_power not negative, got {self.numbers()}'
            )

    def numbers(self) -> dict[str, float]:
        """All of them, by name."""
        return {name: getattr(self, name) for name in self.NAMES}

    @property
    def reach(self) -> tuple[float, float, float, float]:
        """Largest deviation of each relative coordinate, that of the tail."""
        factor = self.tail_factor if self.tail_share > 0 else 1.0
        centre, size = factor * self.centre_std, factor * self.size_std
        return centre, centre, size, size

    def step_length(self, step_length: Sequence[float]) -> tuple[float, ...]:
        """First steps on this density for the centre and the size.

        Args:
            step_length: Those that suit f alone.
        """
        return tuple(
            1 / (1 / (self.temperature * length) + 1 / std**2)
            if length > 0 and math.isfinite(std)
            else self.temperature * length
            for length, std in zip(
                step_length, (self.centre_std, self.size_std)
            )
        )

    def of_corners(
        self, corner_logdensity_fn: LogDensityFn, centres: Tensor
    ) -> LogDensityFn:
        """log p, up to a constant, as a function of corners.

        Args:
            corner_logdensity_fn: Corners (R, S, 4) -> f (R, S).
            centres: (R, 4) the detector's boxes d.
        """

        def logdensity(corners: Tensor) -> Tensor:
            relative = boxes_to_relative(corners, centres[:, None])
            f = corner_logdensity_fn(corners)
            return f / self.temperature + self.logprior(relative)

        return logdensity

    def logprior(self, relative: Tensor) -> Tensor:
        """log pi(t), narrow and wide, up to a constant: (..., 4) -> (...)."""
        centre, size = relative[..., :2], relative[..., 2:]
        distance = (centre / self.centre_std).square().sum(-1) + (
            size / self.size_std
        ).square().sum(-1)
        logprior = -0.5 * distance
        if self.tail_share == 0:
            return logprior
        log_odds = math.log(self.tail_share / (1 - self.tail_share))
        log_ratio = log_odds - 4 * math.log(self.tail_factor)
        return with_tail(logprior, log_ratio, self.tail_factor)

    # ---------------------------------------------------------------- state

    def get_extra_state(self) -> Tensor:
        """The numbers, and whether they were fitted."""
        values = [*self.numbers().values(), float(self.fitted)]
        return torch.tensor(values, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the numbers of a state."""
        *numbers, fitted = state.tolist()
        if len(numbers) != len(self.NAMES):
            raise ValueError(
                f'the density has the numbers {", ".join(self.NAMES)} and the '
                f'state {len(numbers)} of them'
            )
        for name, value in zip(self.NAMES, numbers):
            setattr(self, name, value)
        self.fitted = bool(fitted)
        self.check()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        state = state_dict.get(f'{prefix}_extra_state')
        if state is not None:
            self.set_extra_state(state)

    def extra_repr(self) -> str:
        return ', '.join(
            f'{name}={value:g}' for name, value in self.numbers().items()
        )


class FixedBoxDensity(BoxDensity):
    """Numbers that were given, whatever a checkpoint holds."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        pass


def with_tail(
    narrow: Tensor, log_ratio: float | Tensor, factor: float | Tensor
) -> Tensor:
    r"""log of a narrow Gaussian and a wide one with the same centre.

    .. math:: \log(e^n + r\, e^{n / b^2})

    Args:
        narrow: n, the narrow one's logarithm, 0 at the centre.
        log_ratio: log r of the heights at the centre, wide to narrow; for a
            share a of the wide one in D dimensions
            :math:`\log\tfrac{a}{1 - a} - D \log b`.
        factor: b, how much wider it is.
    """
    return torch.logaddexp(narrow, narrow / factor**2 + log_ratio)


def curvature_std(
    logdensity_fn: LogDensityFn, y: Tensor, std: Sequence[float]
) -> Tensor:
    r"""Standard deviations along each axis, by the curvature around points.

    With :math:`h` half of ``std``, the second difference of log p over
    :math:`\pm h` is that of a Gaussian. Where it says more than ``std``, or
    log p is convex, ``std`` stands in.

    Args:
        logdensity_fn: y (N, S, D) -> log p (N, S).
        y: (N, D) points, near maxima.
        std: D largest standard deviations; those of the prior.

    Returns:
        (N, D).
    """
    # Without a prior: the reach of what f was trained on.
    largest = [min(s, 0.15) for s in std]
    h = torch.stack([y.new_full((), s / 2) for s in largest])
    steps = torch.cat([torch.zeros_like(h)[None], h.diag(), -h.diag()])
    values = logdensity_fn(y[:, None] + steps)
    middle, up, down = values.split([1, len(h), len(h)], 1)
    curvature = (2 * middle - up - down) / h.square()
    least = (2 * h).square().reciprocal()
    curvature = torch.where(curvature > least, curvature, least)
    return curvature.rsqrt()


def expected_quality(std: Tensor, num_samples: int = 64) -> Tensor:
    r"""Expected share of COCO's ten IoU thresholds that boxes pass.

    .. math:: E\,[\mathrm{clip}((\mathrm{IoU} - 0.45) / 0.5, 0, 1)]

    for true boxes that are Gaussian around the placed ones.

    Args:
        std: (R, 4) standard deviations in relative coordinates.
        num_samples: Quasi-random samples, the same for all boxes.

    Returns:
        (R,) between 0 and 1.
    """
    normal = _normal_samples(num_samples).to(std)
    iou = relative_iou(std[:, None] * normal)
    return ((iou - 0.45) / 0.5).clamp(0, 1).mean(1)


@functools.cache
def _normal_samples(num_samples: int) -> Tensor:
    return quasi_random_noise(num_samples, torch.ones(1, 1), 4)
