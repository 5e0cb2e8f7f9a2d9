r"""One density of a box, given the image and the detector's box.

With f the learned log-density, c the detector's box and
:math:`\delta_i` how far side i of a box y is from that of c, relative to the
size of c,

.. math:: p(y | x, c) \propto \exp(f(x, y) / T)\,
          \prod_{i=1}^4 t_\nu(\delta_i / s), \qquad
          s = s_0\, \Big(\tfrac{q}{1 - q}\Big)^a
              \Big(\tfrac{\sqrt{w h}}{64}\Big)^b .

T says how far f can be trusted, s how far the detector can: a box of score q
and w times h network-input pixels errs by s. Student's t with few degrees of
freedom :math:`\nu` has heavy tails: most sides are nearly right and some are
far off, and a side says little of the other three. Where f is worthless, T
grows and the box stays where it is.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import boxes_to_sides
from .object_odds import CLASS_SCORE_ALONE, object_probs
from .types import LogDensityFn

# Before anything was fitted: f counts half, and sides move by a few per cent.
CAUTIOUS = dict(temperature=2.0, side_std=0.04, dof=3.0)
# What states of earlier versions lack, by their count of numbers.
_NEWER = {
    8: dict(std_power=1.0, **CLASS_SCORE_ALONE),
    9: CLASS_SCORE_ALONE,
}
# Larger weights overflow, and mean nothing.
_LARGEST_WEIGHT = 1e3
# Size of a box, in pixels, from which size_slope counts.
_USUAL_SIZE = 64.0


@dataclass(frozen=True)
class BoxPrior:
    """What the detector alone says of R boxes.

    Attributes:
        centres: (R, 4) corners c, the most likely boxes.
        std: (R,) s, relative to their sizes; infinite without a prior.
    """

    centres: Tensor
    std: Tensor

    def split(self, rows: int) -> list['BoxPrior']:
        """Parts of at most so many rows, in copies that autograd accepts."""
        return [
            BoxPrior(centres, std)
            for centres, std in zip(
                self.centres.clone().split(rows), self.std.clone().split(rows)
            )
        ]

    def rows(self, index: Tensor) -> 'BoxPrior':
        """Some rows."""
        return BoxPrior(self.centres[index], self.std[index])


class BoxDensity(nn.Module):
    """The numbers of the density, and what it makes of f.

    They are few floats, part of a model's state. A state without them leaves
    them as they are.

    Args:
        temperature: T; infinite where f is not asked.
        side_std: s of a box of score 0.5 and 64 pixels; infinite for no
            prior.
        dof: Degrees of freedom of Student's t.
        score_slope: a, how s changes with the odds of the score.
        size_slope: b, how s changes with the size.
        vote_share: How far c is moved from the detector's box towards the
            mean of its cluster, the boxes that NMS threw away included.
        quality_power: Exponent of the expected quality in the final score.
        std_factor: The deviation s of a side, relative to the box, is given as
            ``std_factor * s ** std_power``, which agrees best with the errors
            that were seen.
        std_power: The exponent; with less than 1, deviations differ less from
            each other than the density says.
        object_score: Weight of the class score in the probability of an
            object, see :mod:`.object_odds`.
        object_count: Weight of the count of the cluster.
        object_mass: Weight of the mass of the cluster.
        object_bias: What is added to the log-odds.
        fitted: Whether they were fitted on held-out images.

    Raises:
        ValueError: If a number makes no sense.
    """

    NAMES = (
        'temperature',
        'side_std',
        'dof',
        'score_slope',
        'size_slope',
        'vote_share',
        'quality_power',
        'std_factor',
        'std_power',
        *CLASS_SCORE_ALONE,
    )

    def __init__(
        self,
        temperature: float = 1.0,
        side_std: float = math.inf,
        dof: float = 3.0,
        score_slope: float = 0.0,
        size_slope: float = 0.0,
        vote_share: float = 0.0,
        quality_power: float = 0.0,
        std_factor: float = 1.0,
        std_power: float = 1.0,
        object_score: float = 1.0,
        object_count: float = 0.0,
        object_mass: float = 0.0,
        object_bias: float = 0.0,
        fitted: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.side_std = side_std
        self.dof = dof
        self.score_slope = score_slope
        self.size_slope = size_slope
        self.vote_share = vote_share
        self.quality_power = quality_power
        self.std_factor = std_factor
        self.std_power = std_power
        self.object_score = object_score
        self.object_count = object_count
        self.object_mass = object_mass
        self.object_bias = object_bias
        self.fitted = fitted
        self.check()

    def check(self) -> None:
        """Raise a ValueError if a number makes no sense."""
        if not (
            min(self.temperature, self.side_std, self.dof) > 0
            and not math.isnan(self.temperature + self.side_std)
            and math.isfinite(self.dof)
            and math.isfinite(self.score_slope + self.size_slope)
            and all(
                abs(weight) <= _LARGEST_WEIGHT
                for weight in self._object_weights().values()
            )
            and 0 <= self.vote_share <= 1
            and 0 <= self.quality_power < math.inf
            and 0 < self.std_factor < math.inf
            and 0 <= self.std_power < math.inf
        ):
            raise ValueError(
                'temperature, side_std, dof and std_factor must be positive, '
                'the slopes finite, vote_share in [0, 1], quality_power and '
                'std_power not negative, and the weights of an object at most '
                f'{_LARGEST_WEIGHT:g}, got {self.numbers()}'
            )

    def forget(self) -> None:
        """Take the cautious numbers of a density that was never fitted."""
        self.set_numbers(**{**BoxDensity().numbers(), **CAUTIOUS})
        self.fitted = False

    def numbers(self) -> dict[str, float]:
        """All of them, by name."""
        return {name: getattr(self, name) for name in self.NAMES}

    def set_numbers(self, **numbers: float) -> None:
        """Set some of them, and check all."""
        for name, value in numbers.items():
            if name not in self.NAMES:
                raise ValueError(
                    f'the density has no number {name}; it has '
                    f'{", ".join(self.NAMES)}'
                )
            setattr(self, name, value)
        self.check()

    @property
    def weighs_clusters(self) -> bool:
        """Whether the probability of an object is not the class score."""
        return self._object_weights() != CLASS_SCORE_ALONE

    def object_probs(self, scores: Tensor, support: Tensor | None) -> Tensor:
        """(K,) probabilities that detections show an object of their class.

        Args:
            scores: (K,) class scores.
            support: (K, 2) count and mass of each cluster; without it the
                class scores are all there is.
        """
        return object_probs(scores, support, self._object_weights())

    def _object_weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in CLASS_SCORE_ALONE}

    def prior(self, centres: Tensor, scores: Tensor | None = None) -> BoxPrior:
        """What the detector says of boxes.

        Args:
            centres: (R, 4) corners c.
            scores: (R,) class scores of the detector; 0.5 without them.
        """
        log_std = self.size_slope * log_size(centres)
        if scores is not None:
            log_std = log_std + self.score_slope * log_odds(scores)
        return BoxPrior(centres, self.side_std * log_std.exp())

    def step_length(
        self, step_length: Sequence[float], std: Tensor
    ) -> tuple[Tensor, ...]:
        """First steps on this density, (R,) for the centre and the size.

        Args:
            step_length: Those that suit f alone.
            std: (R,) of the prior.
        """
        # At its centre the prior's curvature along a side; both sides move
        # with the centre, and each by half of the size.
        curvature = (self.dof + 1) / (self.dof * std.square())
        return tuple(
            length / (1 / self.temperature + length * sides * curvature)
            for length, sides in zip(step_length, (2.0, 0.5))
        )

    def of_corners(
        self, corner_logdensity_fn: LogDensityFn, prior: BoxPrior
    ) -> LogDensityFn:
        """log p, up to a constant, as a function of corners.

        Args:
            corner_logdensity_fn: Corners (R, S, 4) -> f (R, S).
            prior: Of the R boxes.
        """

        def logdensity(corners: Tensor) -> Tensor:
            f = corner_logdensity_fn(corners)
            return f / self.temperature + self.logprior(prior, corners)

        return logdensity

    def logprior(self, prior: BoxPrior, corners: Tensor) -> Tensor:
        """log of the prior, up to a constant: (R, S, 4) -> (R, S)."""
        sides = boxes_to_sides(corners, prior.centres[:, None])
        return student_logprob(sides / prior.std[:, None, None], self.dof)

    # ---------------------------------------------------------------- state

    def get_extra_state(self) -> Tensor:
        """The numbers, and whether they were fitted."""
        values = [*self.numbers().values(), float(self.fitted)]
        return torch.tensor(values, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the numbers of a state."""
        *numbers, fitted = state.tolist()
        for name, value in zip(self.NAMES, numbers, strict=True):
            setattr(self, name, value)
        self.fitted = bool(fitted)
        self.check()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        state = state_dict.get(f'{prefix}_extra_state')
        if state is None:
            return
        for count, missing in _NEWER.items():
            if state.shape == (count + 1,):
                *numbers, fitted = state.tolist()
                state = state.new_tensor([*numbers, *missing.values(), fitted])
        if state.shape == (len(self.NAMES) + 1,):
            self.set_extra_state(state)
        else:
            warnings.warn(
                'the checkpoint holds a density of boxes of another version '
                f'({state.numel()} numbers; expected {len(self.NAMES) + 1}). '
                'It is left out: fit it again with tools/fit_density.py',
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        return ', '.join(
            f'{name}={value:.3g}' for name, value in self.numbers().items()
        )


class FixedBoxDensity(BoxDensity):
    """Numbers that were given, whatever a checkpoint holds."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        pass


def log_size(corners: Tensor) -> Tensor:
    """log of the sizes of boxes (R, 4), over 64 pixels: (R,)."""
    size = (corners[:, 2:] - corners[:, :2]).clamp(min=1)
    return size.log().mean(1) - math.log(_USUAL_SIZE)


def log_odds(scores: Tensor) -> Tensor:
    """log of q / (1 - q) of class scores, which may be 0 or 1."""
    # bfloat16 knows no number between 1 - eps and 1.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.logit(1e-3)


def student_logprob(z: Tensor, dof: float | Tensor) -> Tensor:
    r"""log of a product of Student's t, up to a constant.

    .. math:: -\tfrac{\nu + 1}{2} \sum_i \log(1 + z_i^2 / \nu)

    Args:
        z: (..., D).
        dof: :math:`\nu`.

    Returns:
        (...), zero at the centre.
    """
    return -0.5 * (dof + 1) * torch.log1p(z.square() / dof).sum(-1)
