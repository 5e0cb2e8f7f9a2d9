"""How sure an energy model is of a box: standard deviations of its sides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core import (
    BoxPrior,
    GaussianMixtureNoise,
    LogDensityFn,
    SideDensities,
    hessian,
    laplace,
    quasi_random_noise,
    sample_density,
)
from ..core.checks import positive, positive_int
from ..ops import relative_to_boxes, side_sizes

# Where the training method has no noise of its own.
DEFAULT_SIGMAS = (0.0375, 0.075, 0.15)
# Sides x1, y1, x2, y2 of a unit box, differentiated in its relative
# coordinates (shift of the centre, logarithm of the size) at zero.
_SIDES_OF_RELATIVE = (
    (1, 0, -0.5, 0),
    (0, 1, 0, -0.5),
    (1, 0, 0.5, 0),
    (0, 1, 0, 0.5),
)
# Fewer equally weighted samples span no covariance of four dimensions.
MIN_SUPPORT = 5


@dataclass(frozen=True)
class BoxUncertainty:
    """What the density around each of R boxes says of it.

    Attributes:
        std: (R, 4) standard deviations of x1, y1, x2, y2, in the pixels of the
            boxes.
        covariance: (R, 4, 4) in the box's relative space
            (``mmdet_ebm.ops.relative_boxes``).
        logprob: (R,) log-density at the box, normalised, in that space.
        support: (R,) how much of it was seen. From samples: equally weighted
            ones that would tell as much; below ``MIN_SUPPORT``, as where the
            density is much narrower than the noise, the other figures are
            NaN. From curvature: 1, or 0 where f was too flat or not
            concave, so that the widest allowed deviation stands in. From
            the densities of sides always 1.
    """

    std: Tensor
    covariance: Tensor
    logprob: Tensor
    support: Tensor

    @classmethod
    def of_sides(
        cls, sides: SideDensities, corners: Tensor, prior: BoxPrior
    ) -> 'BoxUncertainty':
        """From densities of sides, which are taken as independent.

        Args:
            sides: Of R boxes.
            corners: (R, 4) these boxes.
            prior: Of these boxes; the sizes of its centres are the unit.
        """
        unit, size = side_sizes(prior.centres), side_sizes(corners)
        std = sides.std() * unit
        # Shift (a + b) / 2 and log-size b - a of sides a and b.
        first, last = (std / size).square().split(2, 1)
        shift, mixed, log_size = (
            each.diag_embed()
            for each in (
                (first + last) / 4,
                (last - first) / 2,
                first + last,
            )
        )
        covariance = torch.cat(
            [torch.cat([shift, mixed], 2), torch.cat([mixed, log_size], 2)], 1
        )
        logprob = sides.logprob_placed + (size / unit).log()
        return cls(
            std,
            covariance,
            logprob.sum(1),
            torch.ones_like(corners[:, 0]),
        )

    def calibrated(
        self, corners: Tensor, factor: float, power: float
    ) -> 'BoxUncertainty':
        """With deviations of sides that are ``factor * std ** power``.

        Args:
            corners: (R, 4) the boxes; deviations relative to their sizes are
                what is meant.
            factor: Of the deviations.
            power: 1 changes them all by the same factor, with 0 they are all
                the same.
        """
        relative = self.std / side_sizes(corners)
        # A side that is known exactly stays so.
        ratio = factor * relative.clamp(min=1e-6) ** (power - 1)
        # For the shift (a + b) / 2 and the log-size b - a of sides a and b.
        first, last = ratio.split(2, 1)
        mean, difference = (
            each.diag_embed() for each in ((first + last) / 2, last - first)
        )
        change = torch.cat(
            [
                torch.cat([mean, difference / 4], 2),
                torch.cat([difference, mean], 2),
            ],
            1,
        )
        return replace(
            self,
            std=ratio * self.std,
            covariance=change @ self.covariance @ change.mT,
        )

    @classmethod
    def cat(cls, parts: Sequence['BoxUncertainty']) -> 'BoxUncertainty':
        """Join the rows of several."""
        return cls(
            *(
                torch.cat(column)
                for column in zip(
                    *(
                        (p.std, p.covariance, p.logprob, p.support)
                        for p in parts
                    )
                )
            )
        )

    def masked(self, known: Tensor) -> 'BoxUncertainty':
        """NaN, and no support, where ``known`` (R,) is False."""
        return BoxUncertainty(
            torch.where(known[:, None], self.std, torch.nan),
            torch.where(known[:, None, None], self.covariance, torch.nan),
            torch.where(known, self.logprob, torch.nan),
            torch.where(known, self.support, 0),
        )


class UncertaintyEstimator(nn.Module):
    r"""From a log-density f around boxes to the deviations of their sides.

    It looks at all of the four coordinates together, where the densities of
    single sides need fewer evaluations. The density is
    :math:`\exp(f) / Z` within a ball of ``radius`` times
    the widest noise around the box. It is measured with the same quasi-random
    samples for every box, so that a result depends neither on a seed nor on
    what else is in the batch.

    Args:
        method: 'sampling', for every head, or 'laplace', from the second
            derivatives at the box; it needs a smooth head and costs about as
            much as five ascent steps.
        num_samples: Samples of a box, half of them drawn where the others
            found the density high.
        sigmas: Widths of the noise mixture of the first half, in relative
            space; the widest is also the largest deviation that 'laplace'
            gives. The training method's by default.
        radius: See above.
        boxes_per_chunk: Box evaluations at once; bounds the memory.

    Raises:
        ValueError: If a number makes no sense.
    """

    def __init__(
        self,
        method: str = 'sampling',
        num_samples: int = 128,
        sigmas: Sequence = DEFAULT_SIGMAS,
        radius: float = 3.0,
        boxes_per_chunk: int = 2048,
    ) -> None:
        super().__init__()
        if method not in ('sampling', 'laplace'):
            raise ValueError(
                "uncertainty.method must be 'sampling' or "
                f"'laplace', got {method!r}"
            )
        if not isinstance(num_samples, int) or num_samples < 4:
            raise ValueError(
                'uncertainty.num_samples must be a whole number '
                f'of at least 4, got {num_samples!r}'
            )
        positive('uncertainty.radius', radius)
        positive_int('uncertainty.boxes_per_chunk', boxes_per_chunk)
        self.method = method
        self.num_samples = num_samples
        self.radius = radius
        self.boxes_per_chunk = boxes_per_chunk
        self.noise = GaussianMixtureNoise(sigmas)
        self.max_sigma = float(self.noise.sigmas.max())
        first = num_samples // 2

        def constant(name, value):
            self.register_buffer(name, value, persistent=False)

        constant('wide', quasi_random_noise(first, self.noise.sigmas, 4))
        constant(
            'normal',
            quasi_random_noise(
                num_samples - first, torch.ones(1, 1), 4, seed=1
            ),
        )
        constant('sides', torch.tensor(_SIDES_OF_RELATIVE))
        constant('unit_box', torch.tensor([-0.5, -0.5, 0.5, 0.5]))

    @property
    def rows_per_chunk(self) -> int:
        """Boxes to give to one call, for bounded memory."""
        samples = self.num_samples if self.method == 'sampling' else 8
        return max(1, self.boxes_per_chunk // samples)

    def forward(
        self, logdensity_fn: LogDensityFn, corners: Tensor
    ) -> BoxUncertainty:
        """Uncertainty of boxes.

        Args:
            logdensity_fn: Relative coordinates (R, S, 4) -> f (R, S).
            corners: (R, 4) the boxes, at relative coordinates of zero.
        """
        if self.method == 'laplace':
            return self._from_curvature(logdensity_fn, corners)
        return self._from_samples(logdensity_fn, corners)

    def _from_curvature(
        self, logdensity_fn: LogDensityFn, corners: Tensor
    ) -> BoxUncertainty:
        fitted = laplace(
            hessian(logdensity_fn, torch.zeros_like(corners)), self.max_sigma
        )
        sides = self.sides.to(corners.dtype)
        return BoxUncertainty(
            _std(sides @ fitted.covariance @ sides.T, corners),
            fitted.covariance,
            fitted.logprob,
            (~fitted.clamped).to(corners.dtype),
        )

    def _from_samples(
        self, logdensity_fn: LogDensityFn, corners: Tensor
    ) -> BoxUncertainty:
        origin = torch.zeros_like(corners)
        found = sample_density(
            logdensity_fn,
            origin,
            self.wide.to(origin.dtype),
            self.normal.to(origin.dtype),
            self.noise.sigmas.to(origin.dtype),
            radius=self.radius,
        )
        with torch.no_grad():
            logdensity = logdensity_fn(origin[:, None])[:, 0]
        weighted = found.weigh()
        _, covariance = weighted.moments(found.offsets)
        _, of_sides = weighted.moments(
            relative_to_boxes(found.offsets, self.unit_box.to(corners.dtype))
        )
        return BoxUncertainty(
            _std(of_sides, corners),
            covariance,
            logdensity - weighted.log_normaliser,
            weighted.effective_samples,
        ).masked(weighted.effective_samples >= MIN_SUPPORT)

    def extra_repr(self) -> str:
        return (
            f'method={self.method!r}, num_samples={self.num_samples}, '
            f'radius={self.radius}'
        )


def _std(of_sides: Tensor, corners: Tensor) -> Tensor:
    """From covariances (R, 4, 4) of a unit box's sides to pixels (R, 4)."""
    of_unit = of_sides.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    return of_unit * side_sizes(corners)
