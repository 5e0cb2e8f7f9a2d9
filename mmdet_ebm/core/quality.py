r"""How much a box is worth: the IoU thresholds that it can expect to pass.

Of a box b and the true box y, the quality is the share of COCO's ten IoU
thresholds that b passes, made continuous:
:math:`\mathrm{clip}((\mathrm{IoU}(b, y) - 0.45) / 0.5, 0, 1)`.
"""

import functools
import math

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from ..ops import boxes_to_sides
from .box_density import BoxDensity, BoxPrior, student_logprob
from .types import LogDensityFn

# Where a density without a prior is looked at: the reach of training noise.
_LARGEST_STD = 0.15
_NODES = 64


def quality(iou: Tensor) -> Tensor:
    """Share of COCO's thresholds that IoUs pass, made continuous."""
    return ((iou - 0.45) / 0.5).clamp(0, 1)


def expected_quality(
    corner_logdensity_fn: LogDensityFn | None,
    corners: Tensor,
    density: BoxDensity,
    prior: BoxPrior,
    num_samples: int = 64,
) -> Tensor:
    r"""Expected quality of placed boxes under their density.

    f is taken as quadratic around each box, without mixed terms; nine
    evaluations give its slopes and curvatures. The density then falls apart
    into one of each side, of which quasi-random samples are drawn.

    Args:
        corner_logdensity_fn: Corners (R, S, 4) -> f (R, S); None for the
            prior alone.
        corners: (R, 4) placed boxes b.
        density: Its numbers.
        prior: Of the R boxes.
        num_samples: Samples of y, from the same points for all boxes.

    Returns:
        (R,) between 0 and 1.
    """
    std = prior.std.clamp(max=_LARGEST_STD)
    slope = curvature = torch.zeros_like(corners)
    if corner_logdensity_fn and not math.isinf(density.temperature):
        slope, curvature = side_derivatives(
            corner_logdensity_fn, corners, prior.centres, std / 2
        )
    placed = boxes_to_sides(corners, prior.centres)
    # Nodes z of a Cauchy distribution, of equal mass.
    share = (torch.arange(_NODES).to(std) + 0.5) / _NODES
    z = (math.pi * (share - 0.5)).tan()
    logprior = torch.log1p(z.square())
    if not math.isinf(density.side_std):
        logprior = logprior + student_logprob(z[:, None], density.dof)
    sides = std[:, None, None] * z  # (R, 1, nodes)
    step = sides - placed[..., None]  # (R, 4, nodes)
    f = slope[..., None] * step - 0.5 * curvature[..., None] * step.square()
    cumulative = (f / density.temperature + logprior).softmax(-1).cumsum(-1)
    points = _uniform_samples(num_samples).to(std)  # (4, samples)
    chosen = torch.searchsorted(
        cumulative.contiguous(), points.expand(len(std), -1, -1).contiguous()
    )
    true = sides.expand(-1, 4, -1).gather(2, chosen.clamp(max=_NODES - 1))
    return quality(_iou(placed[..., None], true)).mean(-1)


def side_derivatives(
    corner_logdensity_fn: LogDensityFn,
    corners: Tensor,
    reference: Tensor,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """Slope and curvature of f along each side, by differences.

    Args:
        corner_logdensity_fn: Corners (R, S, 4) -> f (R, S).
        corners: (R, 4) where.
        reference: (R, 4) boxes whose sizes are the unit.
        step: (R,) half the distance of the points, in that unit.

    Returns:
        Slopes (R, 4), and curvatures (R, 4) of -f, at least 0.
    """
    size = (reference[:, 2:] - reference[:, :2]).repeat(1, 2)
    move = (step[:, None] * size).diag_embed()  # (R, 4, 4)
    middle = corners[:, None]
    values = corner_logdensity_fn(
        torch.cat([middle, middle + move, middle - move], 1)
    )
    at, up, down = values.split([1, 4, 4], 1)
    slope = (up - down) / (2 * step[:, None])
    curvature = (2 * at - up - down) / step[:, None].square()
    return slope, curvature.clamp(min=0)


def _iou(placed: Tensor, true: Tensor) -> Tensor:
    """IoU (R, S) of sides (R, 4, S) relative to the box 0, 0, 1, 1."""
    first = torch.maximum(placed[:, :2], true[:, :2])
    last = torch.minimum(placed[:, 2:], true[:, 2:])
    overlap = (1 + last - first).clamp(min=0).prod(1)
    areas = [
        (1 + s[:, 2:] - s[:, :2]).clamp(min=0).prod(1) for s in (placed, true)
    ]
    union = areas[0] + areas[1] - overlap
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)


@functools.cache
def _uniform_samples(number: int) -> Tensor:
    points = SobolEngine(4, scramble=True, seed=0).draw(number)
    return points.T.contiguous()
