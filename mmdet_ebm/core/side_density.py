r"""The density of a box, taken apart into one density of each side.

Near a placed box b, f is taken as quadratic in each side, and without mixed
terms. With :math:`\delta` the position of a side relative to that of the
prior's centre, in units of its size, the density of
:class:`~mmdet_ebm.core.BoxDensity` then is a product of

.. math:: p(\delta) \propto \exp\Big(\frac{g\,\ell(\delta - b)
          - \tfrac{1}{2} h (\delta - b)^2}{T}\Big)\, t_\nu(\delta / s),

with the slope g and the curvature h of f at b, and :math:`\ell` the identity
that ends where f was looked at: what it says there is not carried on to where
it was never asked. Nine evaluations of f give g and h of the four sides.
Everything else is sums over the nodes of a grid, one grid for each side.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from ..ops import boxes_to_sides, side_sizes
from .box_density import BoxDensity, BoxPrior, student_logprob
from .quality import quality, side_iou
from .types import LogDensityFn

# Where a density without a prior is looked at: the reach of training noise.
_LARGEST_STD = 0.15
# Half of the nodes of a grid; the other half goes around the placed side.
_NODES = 32


@dataclass(frozen=True)
class SideDensities:
    """The densities of the four sides of R boxes.

    Positions are relative to the prior's centres, in units of their sizes.

    Attributes:
        placed: (R, 4) the boxes, x1, y1, x2, y2.
        nodes: (R, 4, M) rising positions.
        logprob: (R, 4, M) normalised log-densities there.
        mass: (R, 4, M) the probability around each node, of sum 1.
        below: (R, 4, M) the probability below each node.
        logprob_placed: (R, 4) log-densities at the boxes.
    """

    placed: Tensor
    nodes: Tensor
    logprob: Tensor
    mass: Tensor
    below: Tensor
    logprob_placed: Tensor

    def std(self) -> Tensor:
        """(R, 4) standard deviations."""
        mean = (self.mass * self.nodes).sum(-1, keepdim=True)
        variance = (self.mass * (self.nodes - mean).square()).sum(-1)
        return variance.sqrt()

    def quantiles(self, levels: Tensor) -> Tensor:
        """Positions below which a share of the probability lies.

        Args:
            levels: (4, S) shares in [0, 1], for each side.

        Returns:
            (R, 4, S), between the first and the last node.
        """
        return self._at(levels, self.nodes)[0]

    def at_medians(self) -> 'SideDensities':
        """The same densities, of boxes with each side at its median.

        Of all places a side's median has the least expected distance from the
        true side.
        """
        levels = torch.full((4, 1), 0.5, device=self.nodes.device)
        placed, logprob = self._at(levels, self.nodes, self.logprob)
        return replace(
            self, placed=placed[..., 0], logprob_placed=logprob[..., 0]
        )

    def _at(self, levels: Tensor, *values: Tensor) -> list[Tensor]:
        """Values (R, 4, M) of the nodes at shares (4, S): (R, 4, S)."""
        below = self.below.contiguous()
        levels = levels.to(below).expand(len(below), -1, -1).contiguous()
        last = self.nodes.shape[-1] - 1
        after = torch.searchsorted(below, levels).clamp(1, last)
        low, high = below.gather(2, after - 1), below.gather(2, after)
        share = (levels - low) / (high - low).clamp(
            min=torch.finfo(low.dtype).tiny
        )
        share = share.clamp(0, 1)
        return [
            each.gather(2, after - 1).lerp(each.gather(2, after), share)
            for each in values
        ]

    def expected_quality(self, num_samples: int = 64) -> Tensor:
        """(R,) expected quality of the boxes, between 0 and 1.

        Args:
            num_samples: Quasi-random samples of the true box, from the same
                points for all boxes.
        """
        points = _uniform_samples(num_samples, self.placed.device)
        true = self.quantiles(points)
        worth = quality(side_iou(self.placed[..., None], true)).mean(-1)
        return worth.nan_to_num(0.0)  # a box without a size


@dataclass(frozen=True)
class SideDerivatives:
    """What nine evaluations tell of f around R boxes.

    Attributes:
        logdensity: (R,) f at the boxes.
        slope: (R, 4) of f along each side.
        curvature: (R, 4) of -f along each side, at least 0.
    """

    logdensity: Tensor
    slope: Tensor
    curvature: Tensor

    @classmethod
    def cat(cls, parts: Sequence['SideDerivatives']) -> 'SideDerivatives':
        """Boxes of several tables, one after the other."""
        rows = [(p.logdensity, p.slope, p.curvature) for p in parts]
        return cls(*map(torch.cat, zip(*rows)))

    def spread(self, rows: Tensor, number: int) -> 'SideDerivatives':
        """The same among more boxes, of which f says nothing.

        Args:
            rows: (R,) where these boxes are.
            number: How many boxes there are.
        """
        logdensity = self.logdensity.new_full((number,), torch.nan)
        zeros = self.slope.new_zeros((number, 4))
        return SideDerivatives(
            logdensity.index_copy(0, rows, self.logdensity),
            zeros.index_copy(0, rows, self.slope),
            zeros.index_copy(0, rows, self.curvature),
        )


def side_densities(
    corners: Tensor,
    derivatives: SideDerivatives,
    density: BoxDensity,
    prior: BoxPrior,
) -> SideDensities:
    """The densities of the sides of placed boxes.

    Args:
        corners: (R, 4) placed boxes b.
        derivatives: Of f there, from :func:`side_derivatives`; zero where the
            prior alone decides.
        density: Its numbers.
        prior: Of the R boxes.
    """
    reach = _reach(prior)[:, None, None]
    # What is not a number says nothing; T may be infinite.
    slope, curvature = (
        (each / density.temperature).nan_to_num(0.0, 0.0, 0.0)
        for each in (derivatives.slope, derivatives.curvature)
    )
    placed = boxes_to_sides(corners, prior.centres)
    has_prior = not math.isinf(density.side_std)

    def logdensity(sides: Tensor) -> Tensor:
        move = sides - placed[..., None]
        f = slope[..., None] * move.clamp(-reach, reach)
        f = f - 0.5 * curvature[..., None] * move.square()
        if has_prior:
            z = sides / prior.std[:, None, None]
            return f + student_logprob(z[..., None], density.dof)
        # Without a prior, f counts within the reach of training noise.
        return f.masked_fill(move.abs() > 3 * reach, -torch.inf)

    std = prior.std[:, None] if has_prior else reach[..., 0]
    # Of f and prior together, as if both were Gaussian.
    sharpness = curvature + (density.dof + 1) / density.dof / std.square()
    top = placed + (slope / sharpness).clamp(-std, std)
    centre = torch.zeros_like(placed) if has_prior else placed
    nodes, log_width, shares = _nodes(centre, std, top, sharpness.rsqrt())
    logprob = logdensity(nodes)
    log_mass = logprob + log_width
    log_normaliser = log_mass.logsumexp(-1, keepdim=True)
    return SideDensities(
        placed,
        nodes,
        logprob - log_normaliser,
        (log_mass - log_normaliser).exp(),
        _below(log_mass.softmax(-1), shares),
        (logdensity(placed[..., None]) - log_normaliser)[..., 0],
    )


def _reach(prior: BoxPrior) -> Tensor:
    """(R,) how far from a box f is looked at, relative to its size."""
    return prior.std.clamp(max=_LARGEST_STD)


def _below(ratio: Tensor, shares: Tensor) -> Tensor:
    """The probability below each node, by the trapezoid rule.

    Args:
        ratio: (R, 4, M) the density over that of the nodes, up to a factor.
        shares: (R, 4, M) shares of the nodes' distribution below each node.
    """
    # The ratio is finite in the tails, and there stays what it was.
    area = (ratio[..., 1:] + ratio[..., :-1]) / 2 * shares.diff(dim=-1)
    first = ratio[..., :1] * shares[..., :1]
    below = torch.cat([first, area], -1).cumsum(-1)
    return below / (below[..., -1:] + ratio[..., -1:] * (1 - shares[..., -1:]))


def _nodes(
    first: Tensor, first_width: Tensor, second: Tensor, second_width: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rising nodes (R, 4, M) around two centres.

    Each half are points of equal mass of a Cauchy distribution, whose tails
    are at least as heavy as those of the density. The width that a node
    stands for is the inverse of both distributions' density there.

    Returns:
        The nodes, the log of their widths, and how much of both distributions
        is below each.
    """
    number = torch.arange(
        1, _NODES + 1, dtype=first.dtype, device=first.device
    )
    # Shares of mass that differ, so that the nodes of both halves do.
    z = [
        (math.pi * (share - 0.5)).tan()
        for share in ((number - 0.5) / _NODES, number / (_NODES + 1))
    ]
    centres, widths = (
        [each[..., None] for each in pair]
        for pair in ((first, second), (first_width, second_width))
    )
    grids = [c + w * steps for c, w, steps in zip(centres, widths, z)]
    nodes = torch.cat(grids, -1).sort(-1).values
    scaled = [(nodes - c) / w for c, w in zip(centres, widths)]
    log_densities = [
        -torch.log1p(z.square()) - w.log() for z, w in zip(scaled, widths)
    ]
    log_width = math.log(math.pi / _NODES) - torch.logaddexp(*log_densities)
    shares = 0.5 + (scaled[0].atan() + scaled[1].atan()) / (2 * math.pi)
    return nodes, log_width, shares


def side_derivatives(
    corner_logdensity_fn: LogDensityFn, corners: Tensor, prior: BoxPrior
) -> SideDerivatives:
    """f, and its slope and curvature along each side, by differences.

    The points are half of the prior's deviation away, to either side.

    Args:
        corner_logdensity_fn: Corners (R, S, 4) -> f (R, S).
        corners: (R, 4) where.
        prior: Of these boxes; the sizes of its centres are the unit.
    """
    step = _reach(prior) / 2
    move = step[:, None] * side_sizes(prior.centres)
    move = move.diag_embed()  # (R, 4, 4)
    middle = corners[:, None]
    values = corner_logdensity_fn(
        torch.cat([middle, middle + move, middle - move], 1)
    )
    at, up, down = values.split([1, 4, 4], 1)
    slope = (up - down) / (2 * step[:, None])
    curvature = (2 * at - up - down) / step[:, None].square()
    return SideDerivatives(at[:, 0], slope, curvature.clamp(min=0))


@functools.cache
def _uniform_samples(number: int, device: torch.device) -> Tensor:
    points = SobolEngine(4, scramble=True, seed=0).draw(number)
    return points.T.contiguous().to(device)
