"""The energy model of boxes, from feature maps to log-densities and back."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig, reduce_mean
from mmengine.dist import get_world_size
from mmengine.model import BaseModule
from torch import Tensor
from torch.func import functional_call

from ..core import (
    CAUTIOUS,
    AscentInfo,
    BoxAscent,
    BoxDensity,
    BoxPrior,
    FixedBoxDensity,
    IoUNetAscent,
    LogDensityFn,
    LossInfo,
    SideDensities,
    SideDerivatives,
    chunked_loss,
    chunks_of,
    separation,
    side_densities,
    side_derivatives,
)
from ..ops import (
    Boxes,
    FeaturePyramid,
    clip_boxes,
    relative_to_boxes,
    repeat_rows,
)
from .uncertainty import BoxUncertainty, UncertaintyEstimator

TASK_UTILS.register_module(module=BoxAscent)
TASK_UTILS.register_module(module=IoUNetAscent)

# Boxes evaluated at once where no graph is kept; bounds the memory.
BOXES_PER_CHUNK = 512
# Candidates of a training chunk: matrix products with fewer rows are slower,
# more rows need more memory.
CANDIDATES_PER_CHUNK = 2048
# Pooled features from which on chunks are also faster on a CPU, because fresh
# memory costs more there: 64 MiB of float32.
MANY_VALUES = 1 << 24


@dataclass(frozen=True)
class RefinedBoxes:
    """What the ascent made of R boxes.

    Attributes:
        corners: (R, 4) refined boxes, clipped to their images.
        logdensity: (R,) log-density where the ascent ended, before clipping.
        info: The way there: ``trajectory`` (T + 1, R, 4) corners before and
            after each step, ``logdensities`` (T + 1, R) and ``num_accepted``
            (R,), the steps that were kept.
    """

    corners: Tensor
    logdensity: Tensor
    info: AscentInfo


@MODELS.register_module()
class EnergyModel(BaseModule):
    r"""Energy-based model of boxes on any detector's feature maps.

    .. math:: p(y | x) \propto \exp f(x, y), \qquad
              f(x, y) = \mathrm{head}(\mathrm{pool}(\mathrm{maps}(x), y))

    The maps are the detector's, or those of a ``neck`` on them. f is the
    log-density of a box y without its normaliser; the papers' energy is
    E = -f. The model knows nothing of the detector: maps, boxes and labels go
    in, boxes and log-densities come out. Boxes are corners x1, y1, x2, y2 in
    network-input pixels throughout. They move in the relative space of their
    initial position (``mmdet_ebm.ops.boxes``).

    Args:
        head: Config of an ``EnergyHead``.
        loss: Config of a training method, such as ``NCEPlusLoss``.
        featmap_strides: Network-input pixels per cell of each level that is
            pooled from; the detector may have more levels.
        finest_scale: Boxes with a geometric mean side below twice this many
            pixels are pooled from the first level; each doubling is one level
            more. 14 times the first stride by default, as in an FPN.
        neck: Config of an ``EnergyNeck``, which makes maps for the head from
            the detector's and is trained with it. None to pool from the
            detector's own.
        ascent: Config of the ascent: ``BoxAscent`` by default, or
            ``IoUNetAscent``.
        uncertainty: How deviations of sides are found. None takes the
            densities of single sides, which the ranking needs as well. Or
            arguments of an ``UncertaintyEstimator``.
        density: How f and the detector's box are joined at test time, see
            :class:`mmdet_ebm.core.BoxDensity`. 'fitted' takes its numbers
            from the checkpoint, and cautious ones if there are none. A dict
            gives the numbers. None trusts f alone, as published.
        min_box_size: Boxes with a side below this many pixels are neither
            trained on nor moved: their features lie within one cell, and
            their noise is far below a pixel.
        fix_level: Pool a box from the level of its initial position
            throughout. False follows the published code, which picks the
            level anew at every step, so that f jumps where the level changes.
        chunked: Train on some objects at a time, which takes a fraction of
            the memory. None chooses it where it is also faster: on a CPU, for
            many candidates.
        inference_dtype: Precision of the head's products when ordering and
            moving boxes, such as 'bfloat16'; that of its weights by default.
            Pooling, boxes and sums stay as they are. It pays on a GPU and on
            processors with instructions for it.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: If a setting does not fit, or the loss needs second
            derivatives that the head does not have.

    Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
    arXiv 2005.01698, section 5.1 and its supplement.
    """

    def __init__(
        self,
        head: ConfigType,
        loss: ConfigType,
        featmap_strides: Sequence[int],
        finest_scale: int | None = None,
        neck: OptConfigType = None,
        ascent: OptConfigType = None,
        uncertainty: OptConfigType = None,
        density: str | dict | None = 'fitted',
        min_box_size: float = 2.0,
        fix_level: bool = True,
        chunked: bool | None = None,
        inference_dtype: str | None = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.neck = None if neck is None else MODELS.build(neck)
        if self.neck is not None:
            head = {'in_channels': self.neck.out_channels, **head}
        self.head = MODELS.build(head)
        self.loss_energy = MODELS.build(loss)
        self.ascent = TASK_UTILS.build({'type': 'BoxAscent', **(ascent or {})})
        self._uncertainty_cfg = uncertainty
        self.uncertainty_estimator = self._build_estimator()
        self.density = _built_density(density)
        self.featmap_strides = tuple(featmap_strides)
        self.finest_scale = finest_scale
        self.min_box_size = min_box_size
        self.fix_level = fix_level
        self.chunked = chunked
        self.inference_dtype = _checked_dtype(inference_dtype)
        self._require_curvature()
        self._require_fitting_neck()

    # ------------------------------------------------ noise that is measured

    def set_spread(self, spread: Tensor) -> None:
        """Set the noise by the spread (4,) of the detector's errors.

        The loss must have been told to take it, with ``sigmas='measured'``;
        see ``EnergyLoss.set_spread``.
        """
        self.loss_energy.set_spread(spread)
        if self.uncertainty_estimator is not None:
            old = self.uncertainty_estimator.wide
            self.uncertainty_estimator = self._build_estimator().to(old)

    def _build_estimator(self) -> UncertaintyEstimator | None:
        if self._uncertainty_cfg is None:
            return None
        sigmas = self.loss_energy.sigmas
        known = {} if sigmas is None else dict(sigmas=sigmas)
        return UncertaintyEstimator(**{**known, **self._uncertainty_cfg})

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        # A measured spread shapes the noise, which is no part of the state.
        spread = state_dict.get(f'{prefix}loss_energy.spread')
        if (
            spread is not None
            and self.loss_energy.spread is not None
            and spread.isfinite().all()  # a training that never began has NaN
        ):
            self.set_spread(spread)
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ---------------------------------------------- maps -> pooling -> head

    def pyramid(
        self,
        maps: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> FeaturePyramid:
        """Prepare feature maps for all later calls on this batch.

        Args:
            maps: (N, C, H_l, W_l) of each level; with a neck, C may differ.
            image_sizes: Height and width of each image inside its padding.

        Raises:
            ValueError: If levels are missing or have other channels.
        """
        return self._pyramid_of(self._levels_from(maps), image_sizes)

    def _levels_from(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """Maps (N, C, H_l, W_l) to pool from, of the levels with a stride."""
        maps = maps[: len(self.featmap_strides)]
        if self.neck is None:
            return maps
        # As for the pyramid; this alone would switch gradients on.
        learns = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(learns):
            return self.neck(maps)

    def _pyramid_of(
        self,
        maps: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]] | None,
    ) -> FeaturePyramid:
        channels = self.head.in_shape[0]
        if maps and maps[0].shape[1] != channels:
            raise ValueError(
                f'the energy model expects maps of {channels} channels and '
                f'the detector gives {maps[0].shape[1]}'
            )
        # Ordinary tensors even under inference_mode: the ascent saves them
        # for its backward passes.
        with torch.inference_mode(False):
            return FeaturePyramid(
                maps, self.featmap_strides, image_sizes, self.finest_scale
            )

    def corner_logdensity_fn(
        self,
        pyramid: FeaturePyramid,
        reference: Boxes,
        head: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> LogDensityFn:
        """f as a function of corners near reference boxes, in pixels.

        Args:
            pyramid: From :meth:`pyramid`.
            reference: R boxes.
            head: Evaluates instead of ``self.head``.

        Returns:
            Corners (R, S, 4) -> f (R, S), with S candidates for each of R
            boxes, of their image and class and, with ``fix_level``, level.
        """
        head = head or self.head
        level = pyramid.map_levels(reference.corners)

        def logdensity(corners: Tensor) -> Tensor:
            rows, samples = corners.shape[:2]
            corners = corners.flatten(0, 1)
            pooled = pyramid.pool(
                corners,
                repeat_rows(reference.image_index, samples),
                repeat_rows(level, samples)
                if self.fix_level
                else pyramid.map_levels(corners),
                self.head.in_shape[1:],
            )
            labels = repeat_rows(reference.labels, samples)
            return head(pooled, labels).view(rows, samples)

        return logdensity

    def logdensity_fn(
        self, pyramid: FeaturePyramid, reference: Boxes
    ) -> LogDensityFn:
        """f as a function of relative coordinates around reference boxes.

        Returns:
            t (R, S, 4) -> f (R, S), with S candidates for each of R boxes.
        """
        logdensity = self.corner_logdensity_fn(pyramid, reference)

        def relative_logdensity(relative: Tensor) -> Tensor:
            corners = reference.corners[:, None].to(relative.dtype)
            return logdensity(relative_to_boxes(relative, corners))

        return relative_logdensity

    @torch.no_grad()
    def logdensity(self, pyramid: FeaturePyramid, boxes: Boxes) -> Tensor:
        """f (R,) of boxes as they are."""
        head = self._inference_head()
        return torch.cat(
            [
                self.corner_logdensity_fn(pyramid, part, head)(
                    part.corners[:, None]
                )[:, 0]
                for part in boxes.chunks(BOXES_PER_CHUNK)
            ]
        )

    # ------------------------------------------------------------- training

    def loss(
        self,
        maps: Sequence[Tensor],
        gt_boxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """The training method's loss, averaged over the objects of the batch.

        With several processes the batch is that of all of them: the value is
        the same everywhere, and gradients averaged over the processes are its
        gradients, however the objects are spread.

        Args:
            maps: (N, C, H_l, W_l) of each level; with a neck, C may differ.
                Their gradients are computed only if they require them.
            gt_boxes: (K_i, 4) corners of each image.
            gt_labels: (K_i,) int64 of each image.
            image_sizes: Height and width of each image inside its padding.

        Returns:
            ``loss_energy``, zero with a graph without any object, and for the
            log the figures of ``mmdet_ebm.core.separation``, which no loss
            contains.
        """
        boxes = Boxes.from_images(gt_boxes, gt_labels)
        weight = self.is_refinable(boxes.corners).to(boxes.corners.dtype)
        # Objects per process, a fraction where there are few.
        num_objects = reduce_mean(weight.sum()).clamp(min=1 / get_world_size())
        maps = self._levels_from(maps)
        batch = (maps, image_sizes, boxes, weight, num_objects)
        if self._trains_in_chunks(maps, boxes):
            loss, info = self._loss_in_chunks(*batch)
        else:
            loss, info = self._loss_of(*batch)
        # Score matching does not depend on what only shifts f. Parameters
        # without any gradient would halt distributed training.
        unused = sum(p.sum() for p in self.parameters() if p.dim() == 1)
        figures = separation(info.truth, info.noise, weight)
        return _of_all_processes(
            loss + 0 * unused, figures, weight.sum() / num_objects
        )

    def _loss_of(
        self,
        maps: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        boxes: Boxes,
        weight: Tensor,
        num_objects: Tensor,
    ) -> tuple[Tensor, LossInfo]:
        """The loss of boxes, and the log-densities behind it."""
        return self.loss_energy(
            self.logdensity_fn(self._pyramid_of(maps, image_sizes), boxes),
            torch.zeros_like(boxes.corners),
            weight,
            num_objects if self.loss_energy.reduction == 'mean' else None,
        )

    def _trains_in_chunks(self, maps: Sequence[Tensor], boxes: Boxes) -> bool:
        device = boxes.corners.device.type
        # Gradients in half precision need the loss scaled before they exist.
        scaled = (
            torch.amp.is_autocast_available(device)
            and torch.is_autocast_enabled(device)
            and torch.get_autocast_dtype(device) == torch.float16
        )
        candidates = len(boxes.labels) * self.loss_energy.method.num_candidates
        if (
            candidates == 0
            or scaled
            or not torch.is_grad_enabled()
            or not any(t.requires_grad for t in (*maps, *self.parameters()))
            or self.loss_energy.reduction == 'none'
            # A hook would see the gradients of each chunk, then their sum.
            or any(p._backward_hooks for p in self.parameters())
        ):
            return False
        if self.chunked is not None:
            return self.chunked
        values = candidates * math.prod(self.head.in_shape)
        return device == 'cpu' and values >= MANY_VALUES

    def _loss_in_chunks(
        self,
        maps: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        boxes: Boxes,
        weight: Tensor,
        num_objects: Tensor,
    ) -> tuple[Tensor, LossInfo]:
        """The same, with the memory of some objects at a time."""
        size = CANDIDATES_PER_CHUNK // self.loss_energy.method.num_candidates
        # Maps that are pooled where they lie go together, and small ones.
        # Others go image by image: each needs a copy.
        together = FeaturePyramid.costs_little(maps)

        def loss_of_chunk(
            images: slice, rows: slice, maps: Sequence[Tensor]
        ) -> tuple[Tensor, LossInfo]:
            part = boxes.part(images, rows)
            return self._loss_of(
                maps, image_sizes[images], part, weight[rows], num_objects
            )

        return chunked_loss(
            list(chunks_of(boxes.counts, max(1, size), together)),
            loss_of_chunk,
            maps,
            # The neck's get their gradients through the maps.
            [
                parameter
                for name, parameter in self.named_parameters()
                if not name.startswith('neck.')
            ],
        )

    # ----------------------------------------------------------- refinement

    def refine(
        self,
        pyramid: FeaturePyramid,
        boxes: Boxes,
        prior: BoxPrior | None = None,
        check_last: bool = True,
    ) -> RefinedBoxes:
        """Move boxes uphill on their density.

        Args:
            pyramid: From :meth:`pyramid`; boxes are clipped to its images.
            boxes: Each is where its ascent starts, and its reference.
            prior: From ``self.density``; around the boxes without it.
            check_last: Of a :class:`mmdet_ebm.core.BoxAscent`, see
                :func:`mmdet_ebm.core.gradient_ascent`; another ascent has
                no such choice.
        """
        if prior is None:
            prior = self.density.prior(boxes.corners)
        with torch.inference_mode(False):
            # Clones of what may be inference tensors, which autograd refuses.
            boxes = Boxes(
                boxes.corners.clone(),
                boxes.labels.clone(),
                boxes.image_index.clone(),
                boxes.counts,
            )
            prior = BoxPrior(prior.centres.clone(), prior.std.clone())
            moves = self.is_refinable(boxes.corners)[:, None]
            density = self.density.of_corners(
                self.corner_logdensity_fn(
                    pyramid, boxes, self._inference_head()
                ),
                prior,
            )
            options: dict[str, Any] = {}
            if isinstance(self.ascent, BoxAscent):
                lengths = self.density.step_length(
                    self.ascent.step_length, prior.std
                )
                options = dict(step_length=lengths, check_last=check_last)
            result = self.ascent(
                # A box that must not move gets no gradient.
                lambda c: density(
                    torch.where(moves[..., None], c, c.detach())
                ),
                boxes.corners,
                **options,
            )
            corners = torch.where(moves, result.y[:, 0], boxes.corners)
            if pyramid.image_sizes is not None:
                corners = clip_boxes(
                    corners, boxes.image_index, pyramid.image_sizes
                )
        info = AscentInfo(
            result.info.trajectory[:, :, 0],
            result.info.logdensities[:, :, 0],
            result.info.num_accepted[:, 0] * moves[:, 0],
        )
        return RefinedBoxes(corners, result.logdensity[:, 0], info)

    # ------------------------------------------------ what it knows of a box

    def uncertainty(
        self,
        pyramid: FeaturePyramid,
        boxes: Boxes,
        prior: BoxPrior | None = None,
    ) -> BoxUncertainty:
        """How sure the density is of boxes; NaN for those it cannot refine.

        Args:
            pyramid: From :meth:`pyramid`.
            boxes: Boxes, refined ones for example.
            prior: From ``self.density``; around the boxes without it.
        """
        if prior is None:
            prior = self.density.prior(boxes.corners)
        estimator = self.uncertainty_estimator
        if estimator is None:
            sides = self.side_densities(pyramid, boxes, prior)
            return self.uncertainty_of(sides, boxes, prior)
        size = estimator.rows_per_chunk
        with torch.inference_mode(False), torch.no_grad():
            parts = [
                estimator(
                    self.density_fn(pyramid, part, part_prior), part.corners
                )
                for part, part_prior in zip(
                    boxes.chunks(size), prior.split(size)
                )
            ]
        return self._described(BoxUncertainty.cat(parts), boxes)

    def uncertainty_of(
        self, sides: SideDensities, boxes: Boxes, prior: BoxPrior
    ) -> BoxUncertainty:
        """The same from densities of sides that are known.

        Args:
            sides: From :meth:`side_densities`.
            boxes: Of these boxes.
            prior: Of these boxes.
        """
        known = BoxUncertainty.of_sides(sides, boxes.corners, prior)
        return self._described(known, boxes)

    def _described(
        self, known: BoxUncertainty, boxes: Boxes
    ) -> BoxUncertainty:
        known = known.calibrated(
            boxes.corners, self.density.std_factor, self.density.std_power
        )
        return known.masked(self.is_refinable(boxes.corners))

    def density_fn(
        self, pyramid: FeaturePyramid, reference: Boxes, prior: BoxPrior
    ) -> LogDensityFn:
        """log p around reference boxes, up to a constant.

        Args:
            pyramid: From :meth:`pyramid`.
            reference: R boxes.
            prior: Of these boxes, from ``self.density``.

        Returns:
            t (R, S, 4), relative to the reference, -> log p (R, S).
        """
        density = self.density.of_corners(
            self.corner_logdensity_fn(pyramid, reference), prior
        )

        def relative_logdensity(relative: Tensor) -> Tensor:
            corners = reference.corners[:, None].to(relative.dtype)
            return density(relative_to_boxes(relative, corners))

        return relative_logdensity

    @torch.no_grad()
    def side_densities(
        self,
        pyramid: FeaturePyramid,
        boxes: Boxes,
        prior: BoxPrior,
    ) -> SideDensities:
        """The density of each side of placed boxes, by itself.

        See :func:`mmdet_ebm.core.side_densities`.

        Args:
            pyramid: From :meth:`pyramid`.
            boxes: R placed boxes.
            prior: Of these boxes, from ``self.density``.
        """
        derivatives = self.side_derivatives(pyramid, boxes, prior)
        return side_densities(boxes.corners, derivatives, self.density, prior)

    @torch.no_grad()
    def side_derivatives(
        self, pyramid: FeaturePyramid, boxes: Boxes, prior: BoxPrior
    ) -> SideDerivatives:
        """What f says of placed boxes and their sides.

        See :func:`mmdet_ebm.core.side_derivatives`. Where f has no say, since
        T is infinite, it is not asked: NaN, without slope and curvature.

        Args:
            pyramid: From :meth:`pyramid`.
            boxes: R placed boxes.
            prior: Of these boxes, from ``self.density``.
        """
        if math.isinf(self.density.temperature):
            zeros = torch.zeros_like(boxes.corners)
            return SideDerivatives(
                torch.full_like(prior.std, torch.nan), zeros, zeros
            )
        head, size = self._inference_head(), BOXES_PER_CHUNK // 8
        return SideDerivatives.cat(
            [
                side_derivatives(
                    self.corner_logdensity_fn(pyramid, part, head),
                    part.corners,
                    part_prior,
                )
                for part, part_prior in zip(
                    boxes.chunks(size), prior.split(size)
                )
            ]
        )

    def is_refinable(self, corners: Tensor) -> Tensor:
        """(R,) whether boxes (R, 4) are large enough to be moved."""
        sides = corners[:, 2:] - corners[:, :2]
        return (sides >= self.min_box_size).all(1)

    def _inference_head(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The head in the precision of inference."""
        dtype = self.inference_dtype
        if dtype is None:
            return self.head
        weights = {
            name: parameter.detach().to(dtype)
            for name, parameter in self.head.named_parameters()
        }
        return lambda pooled, labels: functional_call(
            self.head, weights, (pooled.to(dtype), labels)
        )

    def _require_fitting_neck(self) -> None:
        if self.neck is None:
            return
        levels = len(self.neck.in_channels)
        if levels != len(self.featmap_strides):
            raise ValueError(
                f'the neck takes {levels} maps (in_channels='
                f'{self.neck.in_channels}) and there are '
                f'{len(self.featmap_strides)} featmap_strides '
                f'{self.featmap_strides}; name as many'
            )
        if self.head.in_shape[0] != self.neck.out_channels:
            raise ValueError(
                f'the neck gives {self.neck.out_channels} channels and '
                'model.energy_model.head.in_channels is '
                f'{self.head.in_shape[0]}. Set it to the same number, or '
                'leave it out'
            )

    def _require_curvature(self) -> None:
        """Refuse a head that lacks what loss or uncertainty differentiate."""
        wanted = []
        if self.loss_energy.method.needs_curvature:
            wanted.append(type(self.loss_energy).__name__)
        estimator = self.uncertainty_estimator
        if estimator is not None and estimator.method == 'laplace':
            wanted.append("uncertainty.method='laplace'")
        if wanted and not self.head.has_curvature():
            raise ValueError(
                f'{wanted[0]} needs second derivatives. Those of a head with '
                f'the activation {type(self.head.shared_fcs[1]).__name__} are '
                'lost in its kinks. Choose a smooth activation: '
                "model.energy_model.head.act_cfg=dict(type='SiLU')"
            )


def _built_density(density: str | dict | None) -> BoxDensity:
    if density == 'fitted':
        return BoxDensity(**CAUTIOUS)
    if density is None:
        return FixedBoxDensity()
    if isinstance(density, str):
        raise ValueError(
            f"density must be 'fitted', None or numbers, got {density!r}"
        )
    return FixedBoxDensity(**density)


def _of_all_processes(
    loss: Tensor, figures: dict[str, Tensor], share: Tensor
) -> dict[str, Tensor]:
    """What is logged, as if the objects of all processes were in this one.

    Args:
        loss: This process's part; its gradient stays this process's own.
        figures: Means over this process's objects.
        share: Their number, relative to the mean over the processes.
    """
    named = dict(loss_energy=loss, **figures)
    if get_world_size() > 1 and loss.dim() == 0:
        own = [loss.detach(), *(figure * share for figure in figures.values())]
        means = reduce_mean(torch.stack(own))
        named = dict(zip(named, means.unbind()))
        named['loss_energy'] = means[0] + (loss - loss.detach())
    return named


def _checked_dtype(name: str | None) -> torch.dtype | None:
    if name not in (None, 'bfloat16', 'float16', 'float32'):
        raise ValueError(
            "inference_dtype must be 'bfloat16', 'float16', 'float32' or "
            f'None, got {name!r}'
        )
    return None if name is None else getattr(torch, name)
