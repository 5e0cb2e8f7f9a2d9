"""Gradient ascent on a log-density, each candidate with its own steps.

:func:`gradient_ascent` and :func:`stopping_ascent` move points of any kind;
:class:`BoxAscent` and :class:`IoUNetAscent` move boxes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..ops.boxes import filled, relative_to_boxes
from .checks import not_negative, positive
from .types import LogDensityFn


@dataclass(frozen=True)
class AscentInfo:
    """How an ascent of T steps went.

    Attributes:
        trajectory: (T + 1, N, S, D) candidates after 0, 1, ... T steps.
        logdensities: (T + 1, N, S) f there.
        num_accepted: (N, S) int64, steps that were kept.
    """

    trajectory: Tensor
    logdensities: Tensor
    num_accepted: Tensor


@dataclass(frozen=True)
class AscentResult:
    """Where an ascent ended; nothing in it carries a graph.

    Attributes:
        y: (N, S, D) candidates.
        logdensity: (N, S) f there.
        info: The way there.
    """

    y: Tensor
    logdensity: Tensor
    info: AscentInfo


def decayed_steps(
    step: Tensor, move: Tensor, change: Tensor, kept: Tensor, decay: float
) -> Tensor:
    """The published rule: after a refused move, all lengths shrink.

    Args:
        step: (N, S, D) present step lengths.
        move: (N, S, D) the last move, step times gradient.
        change: (N, S, D) change of the gradient along it.
        kept: (N, S) whether it was kept.
        decay: Factor on the lengths after a refused one.

    Returns:
        (N, S, D) the next step lengths.
    """
    return torch.where(kept[..., None], step, step * decay)


def secant_steps(
    step: Tensor, move: Tensor, change: Tensor, kept: Tensor, decay: float
) -> Tensor:
    r"""Newton's step with the curvature that the last move met.

    In each dimension the gradient changed by :math:`\Delta g` over a move of
    :math:`s`; where it fell along it, f has its maximum there after a step of
    length :math:`-s / \Delta g` times the gradient, if the curvature stays.
    A length changes by a factor of 1/4 to 2 at a time, and doubles without
    such a maximum in sight. A refused move tells the curvature as well, but f
    may have fallen for another reason: every length shrinks at least by
    ``decay``, since the same move would be refused again. Arguments and
    result as in :func:`decayed_steps`.
    """
    falls = move * change < 0  # False for NaN
    secant = -move / torch.where(falls, change, 1)
    longest = torch.where(kept[..., None], 2 * step, step * decay)
    secant = secant.clamp(min=step / 4).minimum(longest)
    return torch.where(falls, secant, longest)


STEP_RULES: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    dict(decay=decayed_steps, secant=secant_steps)
)


def gradient_ascent(
    logdensity_fn: LogDensityFn,
    init: Tensor,
    step_length: Sequence[float],
    num_steps: int = 10,
    step_decay: float = 0.5,
    step_rule: str = 'decay',
    check_last: bool = True,
) -> AscentResult:
    r"""Move candidates uphill, :math:`y \leftarrow y + \lambda \nabla_y f(y)`.

    A step is kept where f did not fall; elsewhere the candidate stays. A step
    to where f is NaN, or out of the range of numbers, is never kept. The
    lengths of the next step follow a rule: 'decay' is the published one, which
    shrinks them after a refused step; 'secant' also follows the curvature that
    a step met, and climbs as far in fewer steps.

    The evaluation that judges a step is also the one that the next step
    differentiates, so ``num_steps`` steps cost ``num_steps + 1`` forward and
    ``num_steps`` backward passes. Only the gradient in y is computed, no value
    is read back to the host, and it works under ``torch.inference_mode`` if
    ``logdensity_fn`` closes over ordinary tensors.

    Args:
        logdensity_fn: y (N, S, D) -> f (N, S). Candidates must not influence
            each other's values.
        init: (N, S, D) start.
        step_length: D lengths of the first step, one for each dimension.
        num_steps: Steps to try.
        step_decay: Factor on a candidate's steps after one that was refused.
        step_rule: 'decay' or 'secant', see :func:`decayed_steps` and
            :func:`secant_steps`.
        check_last: Whether the last step is judged as well. Without, it is
            kept wherever it leads to numbers, even where f fell or is NaN,
            and f there stays unknown: NaN. That saves an evaluation, for a
            caller who asks about the result anyway.

    Returns:
        The last kept candidates.

    Raises:
        ValueError: If the shapes, numbers or the rule do not fit.

    Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
    arXiv 2005.01698, algorithm S1 of the supplement, for 'decay'.
    """
    if init.dim() != 3 or len(step_length) != init.shape[-1]:
        raise ValueError(
            'expected candidates (N, S, D) and D step lengths, got '
            f'{tuple(init.shape)} and {len(step_length)} step lengths'
        )
    _check_ascent(num_steps, step_decay, step_rule)

    # enable_grad alone does not undo inference_mode.
    with torch.inference_mode(False), torch.enable_grad():
        y = init.detach().clone()
        step = filled(step_length, y).expand_as(y)
        value, grad = _value_and_grad(logdensity_fn, y, num_steps > 0)
        path = [(y, value)]
        accepted = torch.zeros_like(value, dtype=torch.int64)
        for i in range(num_steps):
            move = step * grad
            proposal = y + move
            is_last = i + 1 == num_steps
            keep = proposal.isfinite().all(-1)
            if is_last and not check_last:
                new_value, new_grad = torch.full_like(value, torch.nan), None
            else:
                new_value, new_grad = _value_and_grad(
                    logdensity_fn, proposal, not is_last
                )
                keep = keep & (new_value >= value)  # False for NaN
            y = torch.where(keep[..., None], proposal, y)
            value = torch.where(keep, new_value, value)
            if new_grad is not None:
                step = STEP_RULES[step_rule](
                    step, move, new_grad - grad, keep, step_decay
                )
                grad = torch.where(keep[..., None], new_grad, grad)
            accepted = accepted + keep
            path.append((y, value))
        return _result(path, accepted)


def stopping_ascent(
    logdensity_fn: LogDensityFn,
    init: Tensor,
    step_length: Callable[[Tensor], Tensor],
    num_steps: int = 5,
    min_change: float = 0.001,
    max_fall: float = 0.01,
) -> AscentResult:
    r"""Plain gradient ascent that ends where f stops changing, or falls.

    After a step that changed f by less than ``min_change``, or lowered it by
    more than ``max_fall``, a candidate stays where that step led; it is not
    taken back. Costs and guarantees are those of :func:`gradient_ascent`.

    Args:
        logdensity_fn: y (N, S, D) -> f (N, S). Candidates must not influence
            each other's values.
        init: (N, S, D) start.
        step_length: y (N, S, D) -> step lengths, broadcastable to y.
        num_steps: Steps to take at most.
        min_change: Change of f below which a candidate stops.
        max_fall: Fall of f above which a candidate stops.

    Returns:
        Where the candidates stopped, after ``info.num_accepted`` steps.

    Raises:
        ValueError: If a number is negative.

    Source: "Acquisition of Localization Confidence for Accurate Object
    Detection", ECCV 2018, arXiv 1807.11590, algorithm 2.
    """
    _check_stopping(num_steps, min_change, max_fall)
    with torch.inference_mode(False), torch.enable_grad():
        y = init.detach().clone()
        value, grad = _value_and_grad(logdensity_fn, y, num_steps > 0)
        path = [(y, value)]
        steps = torch.zeros_like(value, dtype=torch.int64)
        active = torch.ones_like(value, dtype=torch.bool)
        for i in range(num_steps):
            proposal = y + step_length(y) * grad
            new_value, new_grad = _value_and_grad(
                logdensity_fn, proposal, i + 1 < num_steps
            )
            active = active & ~new_value.isnan()
            active = active & proposal.isfinite().all(-1)
            change = new_value - value
            y = torch.where(active[..., None], proposal, y)
            value = torch.where(active, new_value, value)
            if new_grad is not None:
                grad = torch.where(active[..., None], new_grad, grad)
            steps = steps + active
            active = (
                active & (change.abs() >= min_change) & (change >= -max_fall)
            )
            path.append((y, value))
        return _result(path, steps)


@dataclass
class BoxAscent:
    """:func:`gradient_ascent` of boxes, each in its own relative space.

    A box moves in the coordinates :func:`mmdet_ebm.ops.boxes_to_relative`
    with respect to where it started, so that steps mean the same for small
    and large boxes. Lengths adapt along mixtures of centre and size; those
    of the default lengths are the four sides, each with a length of its own,
    since what f knows of one side has little to do with the others. The
    attributes are the arguments; a new value holds from the next call on.

    Args:
        num_steps: Steps to try.
        step_length: Lengths of the first step, for the centre and the size.
        step_decay: Factor on a box's steps after one that was refused.
        step_rule: 'secant' or 'decay', the published one, which took 10
            steps; see :func:`gradient_ascent`.

    Raises:
        ValueError: If a number or the rule does not fit.

    Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
    arXiv 2005.01698, section 5.1 and algorithm S1 of the supplement.
    """

    num_steps: int = 4
    step_length: Sequence[float] = (80e-5, 32e-4)
    step_decay: float = 0.5
    step_rule: str = 'secant'

    def __post_init__(self) -> None:
        lengths = self.step_length
        if not isinstance(lengths, Sequence) or len(lengths) != 2:
            raise ValueError(
                'step_length must be two numbers, for centre and size; got '
                f'{lengths!r}'
            )
        for length in lengths:
            not_negative('step_length', length)
        _check_ascent(self.num_steps, self.step_decay, self.step_rule)

    def __call__(
        self,
        corner_logdensity_fn: LogDensityFn,
        corners: Tensor,
        step_length: Sequence[Tensor] | None = None,
        check_last: bool = True,
    ) -> AscentResult:
        """Move boxes uphill on f.

        Args:
            corner_logdensity_fn: Corners (R, S, 4) -> f (R, S).
            corners: (R, 4) x1, y1, x2, y2, the initial boxes.
            step_length: Lengths (R,) of each box's first step, for the centre
                and the size, in place of the attribute.
            check_last: See :func:`gradient_ascent`.

        Returns:
            Corners (R, 1, 4), and a trajectory of corners.
        """
        reference = corners.detach()[:, None]
        with torch.inference_mode(False):
            if step_length is None:
                step_length = filled(self.step_length, reference).unbind()
            centre, size = (
                (length / 2).sqrt().reshape(-1, 1, 1) for length in step_length
            )

        def boxes_at(sides: Tensor) -> Tensor:
            first, last = sides[..., :2], sides[..., 2:]
            relative = torch.cat(
                [centre * (last + first), size * (last - first)], -1
            )
            return relative_to_boxes(relative, reference)

        result = gradient_ascent(
            lambda sides: corner_logdensity_fn(boxes_at(sides)),
            torch.zeros_like(reference),
            # In relative space these are steps of the given lengths.
            (1.0,) * 4,
            self.num_steps,
            self.step_decay,
            self.step_rule,
            check_last,
        )
        with torch.inference_mode(False):
            trajectory = boxes_at(result.info.trajectory)
        info = replace(result.info, trajectory=trajectory)
        return replace(result, y=trajectory[-1], info=info)


@dataclass
class IoUNetAscent:
    r"""IoU-Net's refinement: corners in pixels, few and long steps.

    Each corner coordinate moves by ``step_length`` times the box's present
    side along its axis times the gradient in it,
    :math:`x \leftarrow x + \lambda w \, \partial f / \partial x`, until f
    stops changing; see :func:`stopping_ascent`. The attributes are the
    arguments; a new value holds from the next call on.

    Args:
        num_steps: Steps to take at most.
        step_length: lambda.
        min_change: Change of f below which a box stops.
        max_fall: Fall of f above which a box stops.

    Raises:
        ValueError: If a number is negative.

    Source: "Acquisition of Localization Confidence for Accurate Object
    Detection", ECCV 2018, arXiv 1807.11590, algorithm 2. f is scaled to
    [-1, 1] there in training; whether its thresholds mean the scaled IoU is
    not said, here they do.
    """

    num_steps: int = 5
    step_length: float = 0.5
    min_change: float = 0.001
    max_fall: float = 0.01

    def __post_init__(self) -> None:
        not_negative('step_length', self.step_length)
        _check_stopping(self.num_steps, self.min_change, self.max_fall)

    def __call__(
        self, corner_logdensity_fn: LogDensityFn, corners: Tensor
    ) -> AscentResult:
        """Move boxes uphill on f; see :meth:`BoxAscent.__call__`."""

        def step_length(current: Tensor) -> Tensor:
            sides = (current[..., 2:] - current[..., :2]).clamp(min=0)
            return self.step_length * sides.repeat(1, 1, 2)

        return stopping_ascent(
            corner_logdensity_fn,
            corners[:, None],
            step_length,
            self.num_steps,
            self.min_change,
            self.max_fall,
        )


def _value_and_grad(
    logdensity_fn: LogDensityFn, y: Tensor, with_grad: bool
) -> tuple[Tensor, Any]:
    """f without a graph, and its gradient or None."""
    if not with_grad:
        with torch.no_grad():
            return logdensity_fn(y), None
    y = y.detach().requires_grad_()
    value = logdensity_fn(y)
    (grad,) = torch.autograd.grad(value.sum(), y)
    return value.detach(), grad


def _result(
    path: Sequence[tuple[Tensor, Tensor]], num_accepted: Tensor
) -> AscentResult:
    """From candidates and their f after each step."""
    trajectory, logdensities = map(torch.stack, zip(*path))
    return AscentResult(
        *path[-1], AscentInfo(trajectory, logdensities, num_accepted)
    )


def _check_ascent(num_steps: int, step_decay: float, step_rule: str) -> None:
    _check_num_steps(num_steps)
    if not positive('step_decay', step_decay) < 1:
        raise ValueError(f'step_decay must be below 1, got {step_decay}')
    if not isinstance(step_rule, str) or step_rule not in STEP_RULES:
        raise ValueError(
            f'step_rule must be one of {", ".join(STEP_RULES)}, '
            f'got {step_rule!r}'
        )


def _check_stopping(
    num_steps: int, min_change: float, max_fall: float
) -> None:
    _check_num_steps(num_steps)
    not_negative('min_change', min_change)
    not_negative('max_fall', max_fall)


def _check_num_steps(num_steps: int) -> None:
    if not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(
            f'num_steps must be a whole number of at least 0, got {num_steps}'
        )
