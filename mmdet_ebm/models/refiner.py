"""The energy model of boxes: trains on ground truth, refines detections."""

from collections.abc import Callable, Sequence

import torch
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
from mmengine.model import BaseModule
from torch import Tensor
from torch.func import functional_call

from ..core import (
    STEP_RULES,
    AscentResult,
    LogDensityFn,
    gradient_ascent,
    training_figures,
)
from ..ops import FeatureSurface, relative_to_boxes
from .boxes import BOXES_PER_CHUNK, Boxes, RefinedBoxes, repeat_rows
from .training import energy_loss, of_all_processes
from .uncertainty import BoxUncertainty, build_estimator


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
        memory_saving: Train on some objects at a time and keep no pooled
            features, a fraction of the memory: the gradients of a part are
            computed before the next is pooled. With methods that
            differentiate in the box, or with an unfrozen detector, everything
            is evaluated again for them, which takes longer. By default where
            it is also faster: on a CPU, for many candidates and without the
            latter.
        inference_dtype: Precision of the head's products when ordering and
            moving boxes, such as 'bfloat16'; that of its weights by default.
            Pooling, boxes and sums stay as they are. It pays on a GPU and on
            processors with instructions for it.
        uncertainty: Arguments of an ``UncertaintyEstimator``.
        init_cfg: mmengine's initialisation.

    Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
    arXiv 2005.01698, section 5.1 and its supplement.
    """

    def __init__(
        self,
        roi_extractor: dict,
        head: dict,
        loss: dict,
        num_steps: int = 4,
        step_length: tuple[float, float] = (80e-5, 32e-4),
        step_decay: float = 0.5,
        step_rule: str = 'secant',
        min_box_size: float = 2.0,
        fix_level: bool = True,
        memory_saving: bool | None = None,
        inference_dtype: str | None = None,
        uncertainty: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if len(step_length) != 2 or min(step_length) < 0:
            raise ValueError(
                'step_length must be two numbers, for centre and '
                f'size, not negative; got {step_length}'
            )
        if step_rule not in STEP_RULES:
            raise ValueError(
                f'step_rule must be one of '
                f'{", ".join(STEP_RULES)}; got {step_rule!r}'
            )
        self.roi_extractor = MODELS.build(roi_extractor)
        self.head = MODELS.build(head)
        self.loss_energy = MODELS.build(loss)
        if (
            getattr(self.loss_energy.method, 'needs_curvature', False)
            and not self.head.has_curvature()
        ):
            raise ValueError(
                f'{type(self.loss_energy).__name__} needs second derivatives, '
                'and those of a head with the activation '
                f'{type(self.head.shared_fcs[1]).__name__} are lost in its '
                'kinks; choose a smooth one, such as '
                "model.roi_head.refiner.head.act_cfg=dict(type='SiLU')"
            )
        self.num_steps = num_steps
        self.step_length = tuple(step_length)
        self.step_decay = step_decay
        self.step_rule = step_rule
        self.min_box_size = min_box_size
        self.fix_level = fix_level
        self.memory_saving = memory_saving
        self.inference_dtype = _checked_dtype(inference_dtype)
        self.uncertainty_estimator = build_estimator(
            uncertainty, self.loss_energy.method, self.head
        )

    # ------------------------------------------------------------ the model

    def surface(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]] | None = None,
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

    def logdensity_fn(
        self, surface: FeatureSurface, reference: Boxes
    ) -> LogDensityFn:
        """f as a function of relative coordinates around ``reference``.

        Returns:
            t (R, S, 4) -> f (R, S), with S candidates for each of R boxes.
        """
        logdensity = self.corner_logdensity_fn(surface, reference)

        def relative_logdensity(relative: Tensor) -> Tensor:
            return logdensity(
                relative_to_boxes(
                    relative, reference.corners[:, None].to(relative.dtype)
                )
            )

        return relative_logdensity

    def corner_logdensity_fn(
        self,
        surface: FeatureSurface,
        reference: Boxes,
        head: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> LogDensityFn:
        """f as a function of corners near ``reference``, in pixels.

        Args:
            surface: From :meth:`surface`.
            reference: Boxes.
            head: Evaluates instead of ``self.head``.

        Returns:
            Corners (R, S, 4) -> f (R, S), with S candidates for each of R
            boxes, of their image and class and, with ``fix_level``, level.
        """
        head = head or self.head
        level_of = self.level_fn(reference)

        def logdensity(corners: Tensor) -> Tensor:
            rows, samples = corners.shape[:2]
            level = level_of(corners)
            corners = corners.flatten(0, 1)
            pooled = self.roi_extractor.pool(
                surface,
                corners,
                repeat_rows(reference.image_index, samples),
                level,
            )
            return head(pooled, repeat_rows(reference.labels, samples)).view(
                rows, samples
            )

        return logdensity

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

    def level_fn(self, reference: Boxes) -> Callable[[Tensor], Tensor]:
        """Corners (R, S, 4) -> the level (R * S,) to pool each from."""
        initial = self.roi_extractor.map_roi_levels(reference.corners)

        def level(corners: Tensor) -> Tensor:
            if self.fix_level:
                return repeat_rows(initial, corners.shape[1])
            return self.roi_extractor.map_roi_levels(corners.flatten(0, 1))

        return level

    @torch.no_grad()
    def logdensity(self, surface: FeatureSurface, boxes: Boxes) -> Tensor:
        """f (R,) of boxes as they are."""
        level = self.roi_extractor.map_roi_levels(boxes.corners)
        head = self._inference_head()
        values = []
        for rows in torch.arange(len(level), device=level.device).split(
            BOXES_PER_CHUNK
        ):
            pooled = self.roi_extractor.pool(
                surface,
                boxes.corners[rows],
                boxes.image_index[rows],
                level[rows],
            )
            values.append(head(pooled, boxes.labels[rows]))
        return torch.cat(values)

    # ------------------------------------------------------------- training

    def loss(
        self,
        features: Sequence[Tensor],
        gt_boxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
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
        # Objects per process, a fraction where there are few.
        num_objects = reduce_mean(weight.sum()).clamp(min=1 / get_world_size())
        loss, record = energy_loss(
            self,
            features,
            image_sizes,
            boxes,
            weight,
            num_objects if self.loss_energy.reduction == 'mean' else None,
        )
        # Score matching does not depend on what only shifts f. Parameters
        # without any gradient would halt distributed training.
        unused = sum(p.sum() for p in self.head.parameters() if p.dim() == 1)
        figures = training_figures(
            self.loss_energy.method,
            record,
            torch.zeros_like(boxes.corners),
            weight,
        )
        return of_all_processes(
            loss + 0 * unused, figures, weight.sum() / num_objects
        )

    # ----------------------------------------------------------- refinement

    def refine(
        self,
        surface: FeatureSurface,
        boxes: Boxes,
        image_sizes: Sequence[tuple[int, int]],
    ) -> RefinedBoxes:
        """Move boxes uphill on f.

        Args:
            surface: From :meth:`surface`.
            boxes: Detections; each is the reference of its own ascent.
            image_sizes: Height and width of each image, to clip to.
        """
        with torch.inference_mode(False):
            # Clones of what may be inference tensors, which autograd refuses.
            boxes = Boxes(
                boxes.corners.clone(),
                boxes.labels.clone(),
                boxes.image_index.clone(),
                boxes.counts,
            )
            moves = self._is_refinable(boxes.corners)[:, None, None]
            full = self.corner_logdensity_fn(
                surface, boxes, self._inference_head()
            )
            refined, result = self.ascend(
                # A box that must not move gets no gradient.
                lambda c: full(torch.where(moves, c, c.detach())),
                boxes.corners,
            )
            refined = torch.where(moves[:, 0], refined, boxes.corners)
            pieces = [
                _clip(piece, size)
                for (piece,), size in zip(
                    boxes.split(refined), image_sizes, strict=True
                )
            ]
        accepted = result.num_accepted[:, 0] * moves[:, 0, 0]
        return RefinedBoxes(
            torch.cat(pieces),
            result.logdensity[:, 0],
            result.initial_logdensity[:, 0],
            accepted,
        )

    def ascend(
        self, corner_logdensity_fn: LogDensityFn, corners: Tensor
    ) -> tuple[Tensor, AscentResult]:
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
            torch.zeros_like(reference),
            (centre, centre, size, size),
            self.num_steps,
            self.step_decay,
            self.step_rule,
        )
        return relative_to_boxes(result.y, reference)[:, 0], result

    def uncertainty(
        self, surface: FeatureSurface, boxes: Boxes
    ) -> BoxUncertainty:
        """How sure f is of boxes; unknown (NaN) for those it cannot refine.

        Args:
            surface: From :meth:`surface`.
            boxes: Boxes, refined ones for example.
        """
        with torch.inference_mode(False), torch.no_grad():
            parts = [
                self.uncertainty_estimator(
                    self.logdensity_fn(surface, part), part.corners
                )
                for part in boxes.chunks(
                    self.uncertainty_estimator.rows_per_chunk
                )
            ]
        return BoxUncertainty.cat(parts).masked(
            self._is_refinable(boxes.corners)
        )

    def _is_refinable(self, corners: Tensor) -> Tensor:
        sides = corners[:, 2:] - corners[:, :2]
        return (sides >= self.min_box_size).all(1)


def _checked_dtype(name: str | None) -> torch.dtype | None:
    if name not in (None, 'bfloat16', 'float16', 'float32'):
        raise ValueError(
            "inference_dtype must be 'bfloat16', 'float16', "
            f"'float32' or None, got {name!r}"
        )
    return None if name is None else getattr(torch, name)


def _clip(corners: Tensor, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    return torch.cat(
        [corners[:, 0::2].clamp(0, width), corners[:, 1::2].clamp(0, height)],
        1,
    )[:, [0, 2, 1, 3]]
