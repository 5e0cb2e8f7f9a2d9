"""The energy model of boxes: trains on ground truth, refines detections."""

from dataclasses import dataclass
from typing import Optional, Sequence

import torch
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
from mmengine.model import BaseModule
from torch import Tensor

from ..core import (STEP_RULES, AscentResult, LogDensityFn,
                    RecordedLogDensity, gradient_ascent, stopping_ascent,
                    training_figures)
from ..ops import FeatureSurface, relative_to_boxes
from .uncertainty import BoxUncertainty, build_estimator

# Boxes evaluated at once where no graph is kept; bounds the memory.
_BOXES_PER_CHUNK = 2048


@dataclass(frozen=True)
class Boxes:
    """The boxes of a batch of images in one table of R rows.

    Attributes:
        corners: (R, 4) x1, y1, x2, y2 in network-input pixels.
        labels: (R,) int64 classes.
        image_index: (R,) int64 image of each box.
        counts: Boxes of each image; rows are in the order of the images.
    """
    corners: Tensor
    labels: Tensor
    image_index: Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_images(cls, corners: Sequence[Tensor],
                    labels: Sequence[Tensor]) -> 'Boxes':
        """Join one (K_i, 4) and one (K_i,) tensor for each image."""
        index = [torch.full_like(per_image, i)
                 for i, per_image in enumerate(labels)]
        return cls(torch.cat(list(corners)), torch.cat(list(labels)),
                   torch.cat(index), tuple(map(len, labels)))

    def chunks(self, rows: int) -> list['Boxes']:
        """Parts of at most so many rows, in copies that autograd accepts."""
        columns = (t.clone().split(rows) for t in (
            self.corners, self.labels, self.image_index))
        return [Boxes(*part, (len(part[0]), )) for part in zip(*columns)]

    def split(self, *tables: Tensor) -> list[tuple[Tensor, ...]]:
        """The rows of each image, for every table of R rows."""
        return list(zip(*(table.split(self.counts) for table in tables)))


@dataclass(frozen=True)
class RefinedBoxes:
    """What the ascent made of R boxes.

    Attributes:
        corners: (R, 4) refined boxes, clipped to their images.
        logdensity: (R,) log-density where the ascent ended, before clipping.
        initial_logdensity: (R,) log-density of the initial boxes.
        num_accepted: (R,) int64, ascent steps that were kept.
    """
    corners: Tensor
    logdensity: Tensor
    initial_logdensity: Tensor
    num_accepted: Tensor


@MODELS.register_module()
class EnergyRefiner(BaseModule):
    """Energy-based model p(y | x) of boxes y on any detector's feature maps.

    It knows nothing of the detector: feature maps, boxes and labels go in,
    boxes and log-densities come out. Boxes move in the relative space of their
    initial position (``mmdet_ebm.ops.relative_boxes``).

    Args:
        roi_extractor: Config of a ``PreciseRoIExtractor``.
        head: Config of an ``EnergyHead``.
        loss: Config of a training method, such as ``NCEPlusLoss``.
        num_steps: Ascent steps.
        step_length: Lengths of the first step, for the centre and the size.
        step_decay: Factor on a box's steps after a step that was refused.
        step_rule: 'secant', which follows the curvature of f, or 'decay', the
            published one, which took 10 steps; see
            :func:`mmdet_ebm.core.gradient_ascent`.
        min_box_size: Boxes with a side below this many network-input pixels
            are neither trained on nor moved: their features lie within one
            cell, and their noise is far below a pixel.
        fix_level: Pool a box from the level of its initial position
            throughout. False follows the published code, which picks the
            level anew at every step, so that f jumps where the level changes.
        uncertainty: Arguments of an ``UncertaintyEstimator``.
        init_cfg: mmengine's initialisation.

    Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
    arXiv 2005.01698, section 5.1 and its supplement.
    """

    def __init__(self,
                 roi_extractor: dict,
                 head: dict,
                 loss: dict,
                 num_steps: int = 4,
                 step_length: tuple[float, float] = (80e-5, 32e-4),
                 step_decay: float = 0.5,
                 step_rule: str = 'secant',
                 min_box_size: float = 2.0,
                 fix_level: bool = True,
                 uncertainty: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if len(step_length) != 2 or min(step_length) < 0:
            raise ValueError('step_length must be two numbers, for centre and '
                             f'size, not negative; got {step_length}')
        if step_rule not in STEP_RULES:
            raise ValueError(f'step_rule must be one of '
                             f'{", ".join(STEP_RULES)}; got {step_rule!r}')
        self.roi_extractor = MODELS.build(roi_extractor)
        self.head = MODELS.build(head)
        self.loss_energy = MODELS.build(loss)
        if (getattr(self.loss_energy.method, 'needs_curvature', False)
                and not self.head.has_curvature()):
            raise ValueError(
                f'{type(self.loss_energy).__name__} needs second derivatives, '
                'and those of a head with the activation '
                f'{type(self.head.shared_fcs[1]).__name__} are lost in its '
                'kinks; choose a smooth one, such as '
                "model.roi_head.refiner.head.act_cfg=dict(type='SiLU')")
        self.num_steps = num_steps
        self.step_length = tuple(step_length)
        self.step_decay = step_decay
        self.step_rule = step_rule
        self.min_box_size = min_box_size
        self.fix_level = fix_level
        self.uncertainty_estimator = build_estimator(
            uncertainty, self.loss_energy.method, self.head)

    # ------------------------------------------------------------ the model

    def surface(
        self,
        features: Sequence[Tensor],
        image_sizes: Optional[Sequence[tuple[int, int]]] = None
    ) -> FeatureSurface:
        """Prepare feature maps for all later calls on this batch.

        Args:
            features: Maps (N, C, H_l, W_l) of each level.
            image_sizes: Height and width of each image inside its padding.
        """
        # Ordinary tensors even under inference_mode: the ascent saves them
        # for its backward passes.
        with torch.inference_mode(False):
            return self.roi_extractor.surface(features, image_sizes)

    def logdensity_fn(self, surface: FeatureSurface,
                      reference: Boxes) -> LogDensityFn:
        """f as a function of relative coordinates around ``reference``.

        Returns:
            t (R, S, 4) -> f (R, S), with S candidates for each of R boxes.
        """
        logdensity = self.corner_logdensity_fn(surface, reference)

        def relative_logdensity(relative: Tensor) -> Tensor:
            return logdensity(
                relative_to_boxes(
                    relative, reference.corners[:, None].to(relative.dtype)))

        return relative_logdensity

    def corner_logdensity_fn(self, surface: FeatureSurface,
                             reference: Boxes) -> LogDensityFn:
        """f as a function of corners near ``reference``, in pixels.

        Returns:
            Corners (R, S, 4) -> f (R, S), with S candidates for each of R
            boxes, of their image and class and, with ``fix_level``, level.
        """
        initial_level = self.roi_extractor.map_roi_levels(reference.corners)

        def logdensity(corners: Tensor) -> Tensor:
            rows, samples = corners.shape[:2]
            corners = corners.flatten(0, 1)
            if self.fix_level:
                level = initial_level.repeat_interleave(
                    samples, output_size=rows * samples)
            else:
                level = self.roi_extractor.map_roi_levels(corners)
            expand = lambda t: t[:, None].expand(  # noqa: E731
                rows, samples).reshape(-1)
            pooled = self.roi_extractor.pool(
                surface, corners, expand(reference.image_index), level)
            return self.head(pooled, expand(reference.labels)).view(
                rows, samples)

        return logdensity

    @torch.no_grad()
    def logdensity(self, surface: FeatureSurface, boxes: Boxes) -> Tensor:
        """f (R,) of boxes as they are."""
        level = self.roi_extractor.map_roi_levels(boxes.corners)
        values = []
        for rows in torch.arange(
                len(level), device=level.device).split(_BOXES_PER_CHUNK):
            pooled = self.roi_extractor.pool(surface, boxes.corners[rows],
                                             boxes.image_index[rows],
                                             level[rows])
            values.append(self.head(pooled, boxes.labels[rows]))
        return torch.cat(values)

    # ------------------------------------------------------------- training

    def loss(self, features: Sequence[Tensor], gt_boxes: Sequence[Tensor],
             gt_labels: Sequence[Tensor],
             image_sizes: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The training method's loss, averaged over the objects of the batch.

        With several processes the batch is that of all of them: the value is
        the same everywhere, and gradients averaged over the processes are its
        gradients, however the objects are spread.

        Args:
            features: Maps (N, C, H_l, W_l) of each level. Their gradients are
                computed only if they require them.
            gt_boxes: (K_i, 4) corners of each image, in network-input pixels.
            gt_labels: (K_i,) int64 of each image.
            image_sizes: Height and width of each image inside its padding.

        Returns:
            ``loss_energy``, zero with a graph without any object, and for the
            log the figures of ``mmdet_ebm.core.separation``, which no loss
            contains.
        """
        boxes = Boxes.from_images(gt_boxes, gt_labels)
        weight = self._is_refinable(boxes.corners).to(boxes.corners.dtype)
        surface = self.roi_extractor.surface(features, image_sizes)
        # Objects per process, a fraction where there are few.
        num_objects = reduce_mean(weight.sum()).clamp(
            min=1 / get_world_size())
        record = RecordedLogDensity(self.logdensity_fn(surface, boxes))
        targets = torch.zeros_like(boxes.corners)
        loss = self.loss_energy(
            record, targets, weight=weight,
            avg_factor=(num_objects if self.loss_energy.reduction == 'mean'
                        else None))
        # Score matching does not depend on what only shifts f. Parameters
        # without any gradient would halt distributed training.
        unused = sum(p.sum() for p in self.head.parameters() if p.dim() == 1)
        figures = training_figures(self.loss_energy.method, record, targets,
                                   weight)
        return _of_all_processes(loss + 0 * unused, figures,
                                 weight.sum() / num_objects)

    # ----------------------------------------------------------- refinement

    def refine(self, surface: FeatureSurface, boxes: Boxes,
               image_sizes: Sequence[tuple[int, int]]) -> RefinedBoxes:
        """Move boxes uphill on f.

        Args:
            surface: From :meth:`surface`.
            boxes: Detections; each is the reference of its own ascent.
            image_sizes: Height and width of each image, to clip to.
        """
        with torch.inference_mode(False):
            # Clones of what may be inference tensors, which autograd refuses.
            boxes = Boxes(boxes.corners.clone(), boxes.labels.clone(),
                          boxes.image_index.clone(), boxes.counts)
            moves = self._is_refinable(boxes.corners)[:, None, None]
            full = self.corner_logdensity_fn(surface, boxes)
            refined, result = self.ascend(
                # A box that must not move gets no gradient.
                lambda c: full(torch.where(moves, c, c.detach())),
                boxes.corners)
            refined = torch.where(moves[:, 0], refined, boxes.corners)
            pieces = [
                _clip(piece, size) for (piece, ), size in zip(
                    boxes.split(refined), image_sizes, strict=True)
            ]
        accepted = result.num_accepted[:, 0] * moves[:, 0, 0]
        return RefinedBoxes(
            torch.cat(pieces), result.logdensity[:, 0],
            result.initial_logdensity[:, 0], accepted)

    def ascend(self, corner_logdensity_fn: LogDensityFn,
               corners: Tensor) -> tuple[Tensor, AscentResult]:
        """The ascent from given boxes, in their relative space.

        Args:
            corner_logdensity_fn: Corners (R, 1, 4) -> f (R, 1).
            corners: (R, 4), the initial boxes.

        Returns:
            The corners (R, 4) where it ends, and how it went.
        """
        reference = corners[:, None]
        centre, size = self.step_length
        result = gradient_ascent(
            lambda t: corner_logdensity_fn(relative_to_boxes(t, reference)),
            torch.zeros_like(reference), (centre, centre, size, size),
            self.num_steps, self.step_decay, self.step_rule)
        return relative_to_boxes(result.y, reference)[:, 0], result

    def uncertainty(self, surface: FeatureSurface,
                    boxes: Boxes) -> BoxUncertainty:
        """How sure f is of boxes; unknown (NaN) for those it cannot refine.

        Args:
            surface: From :meth:`surface`.
            boxes: Boxes, refined ones for example.
        """
        with torch.inference_mode(False), torch.no_grad():
            parts = [
                self.uncertainty_estimator(
                    self.logdensity_fn(surface, part), part.corners)
                for part in boxes.chunks(
                    self.uncertainty_estimator.rows_per_chunk)
            ]
        return BoxUncertainty.cat(parts).masked(
            self._is_refinable(boxes.corners))

    def _is_refinable(self, corners: Tensor) -> Tensor:
        sides = corners[:, 2:] - corners[:, :2]
        return (sides >= self.min_box_size).all(1)


@MODELS.register_module()
class IoUNetRefiner(EnergyRefiner):
    r"""IoU-Net's refinement: corners in pixels, few and long steps.

    Each corner coordinate moves by ``step_length`` times the box's present
    side along its axis times the gradient in it,
    :math:`x \leftarrow x + \lambda w \, \partial f / \partial x`, until f
    stops changing. Meant for a head that was trained with
    ``LocalizationConfidenceLoss``; everything else is ``EnergyRefiner``.

    Args:
        roi_extractor: Config of a ``PreciseRoIExtractor``.
        head: Config of an ``EnergyHead``.
        loss: Config of a training method.
        num_steps: Ascent steps, at most.
        step_length: lambda.
        min_change: Change of f below which a box stops.
        max_fall: Fall of f above which a box stops.
        min_box_size: As in ``EnergyRefiner``.
        fix_level: As in ``EnergyRefiner``.
        uncertainty: As in ``EnergyRefiner``; f is no log-density here, so fit
            a temperature first.
        init_cfg: mmengine's initialisation.

    Source: "Acquisition of Localization Confidence for Accurate Object
    Detection", ECCV 2018, arXiv 1807.11590, algorithm 2. f is scaled to
    [-1, 1] there in training; whether its thresholds mean the scaled IoU is
    not said, here they do.
    """

    def __init__(self,
                 roi_extractor: dict,
                 head: dict,
                 loss: dict,
                 num_steps: int = 5,
                 step_length: float = 0.5,
                 min_change: float = 0.001,
                 max_fall: float = 0.01,
                 min_box_size: float = 2.0,
                 fix_level: bool = True,
                 uncertainty: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(
            roi_extractor, head, loss, num_steps=num_steps,
            step_length=(step_length, step_length), min_box_size=min_box_size,
            fix_level=fix_level, uncertainty=uncertainty, init_cfg=init_cfg)
        self.min_change = min_change
        self.max_fall = max_fall

    def ascend(self, corner_logdensity_fn: LogDensityFn,
               corners: Tensor) -> tuple[Tensor, AscentResult]:
        """See ``EnergyRefiner.ascend``."""

        def step_length(current: Tensor) -> Tensor:
            sides = (current[..., 2:] - current[..., :2]).clamp(min=0)
            return self.step_length[0] * sides.repeat(1, 1, 2)

        result = stopping_ascent(corner_logdensity_fn, corners[:, None],
                                 step_length, self.num_steps, self.min_change,
                                 self.max_fall)
        return result.y[:, 0], result


def _of_all_processes(loss: Tensor, figures: dict[str, Tensor],
                      share: Tensor) -> dict[str, Tensor]:
    """What is logged, as if the objects of all processes were in this one.

    Args:
        loss: This process's part; its gradient stays this process's own.
        figures: Means over this process's objects.
        share: Their number, relative to the mean over the processes.
    """
    named = dict(loss_energy=loss, **figures)
    if get_world_size() > 1 and loss.dim() == 0:
        means = reduce_mean(torch.stack([
            loss.detach(), *(figure * share for figure in figures.values())]))
        named = dict(zip(named, means.unbind()))
        named['loss_energy'] = means[0] + (loss - loss.detach())
    return named


def _clip(corners: Tensor, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    return torch.cat([corners[:, 0::2].clamp(0, width),
                      corners[:, 1::2].clamp(0, height)], 1)[:, [0, 2, 1, 3]]
