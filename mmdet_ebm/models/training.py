"""What a training step needs around the log-density of boxes."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core import LogDensityFn, RecordedLogDensity, SamplingMethod
from ..ops import FeatureSurface, relative_to_boxes
from . import boxes
from .boxes import Boxes, repeat_rows
from .energy_head import EnergyHead
from .loss_by_parts import autocast_dtype, loss_by_parts
from .losses import EnergyLoss

# Pooled features from which on it is faster on a CPU not to keep them, because
# fresh memory costs more there: 256 MiB of float32.
_MANY_VALUES = 1 << 26
# Candidates of a part whose gradients are computed at once: matrix products
# with fewer rows are slower, more rows need more memory.
_ROWS_PER_PART = 2048


def energy_loss(
    refiner: nn.Module,
    features: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    reference: Boxes,
    weight: Tensor,
    avg_factor: Tensor | None,
) -> tuple[Tensor, RecordedLogDensity]:
    """The loss of boxes under the refiner's training method.

    Where the refiner saves memory, the loss is differentiated part by part
    (:func:`loss_by_parts`) if nothing but the head's parameters needs
    gradients, and else evaluated again for them (:func:`image_by_image_fn`).

    Args:
        refiner: An ``EnergyRefiner``.
        features: Maps (N, C, H_l, W_l) of each level; get gradients if they
            require them.
        image_sizes: Height and width of each image inside its padding.
        reference: Objects, R boxes.
        weight: (R,) weights of the objects.
        avg_factor: What the mean over them divides by.

    Returns:
        The loss, and f as the method has evaluated it last.
    """
    energy, saving = refiner.loss_energy, refiner.memory_saving
    if saving is None:
        saving = reference.corners.device.type == 'cpu'
    training_fn = image_by_image_fn if saving else whole_batch_fn
    record = RecordedLogDensity(
        training_fn(refiner, features, image_sizes, reference)
    )
    targets = torch.zeros_like(reference.corners)
    if not saving or not _can_go_by_parts(refiner, features):
        return energy(record, targets, weight, avg_factor), record

    candidates, *draws = energy.method.draw(record, targets)
    samples = candidates.shape[1]
    much = refiner.memory_saving or _is_much(refiner, candidates)
    if samples > _ROWS_PER_PART or not much:
        losses = energy.method.losses(record(candidates), *draws)
        return energy.reduce(losses, weight, avg_factor), record

    parts = _parts(features, reference, max(1, _ROWS_PER_PART // samples))

    def part_loss(number: int, logdensity: Tensor) -> Tensor:
        _, objects = parts[number]
        losses = energy.method.losses(
            logdensity.view(-1, samples), *(d[objects] for d in draws)
        )
        return energy.reduce(losses, weight[objects], avg_factor)

    loss, values = loss_by_parts(
        refiner.head,
        _pooled_parts(
            refiner, features, image_sizes, reference, candidates, parts
        ),
        part_loss,
    )
    record.values = values.view(-1, samples)
    return loss, record


def _can_go_by_parts(refiner: nn.Module, features: Sequence[Tensor]) -> bool:
    """Whether a loss may be differentiated with its value, once for all."""
    energy, head = refiner.loss_energy, refiner.head
    # What does not have its gradients from the loss alone, in two stages.
    usual = (
        isinstance(energy.method, SamplingMethod)
        and type(energy.method).forward is SamplingMethod.forward
        and type(energy).forward is EnergyLoss.forward
        and energy.reduction != 'none'
        and getattr(type(head), 'forward', None) is EnergyHead.forward
        and any(p is head.first_layer.weight for p in head.parameters())
        and not any(p._backward_hooks for p in head.parameters())
    )
    # Gradients in half precision need the loss scaled before they exist.
    scaled = autocast_dtype(features[0].device) == torch.float16
    others = [*features, *refiner.roi_extractor.parameters()]
    return (
        usual
        and not scaled
        and torch.is_grad_enabled()
        and not any(t.requires_grad for t in others)
    )


def _is_much(refiner: nn.Module, candidates: Tensor) -> bool:
    values = math.prod(candidates.shape[:2]) * math.prod(refiner.head.in_shape)
    return values >= _MANY_VALUES


def _parts(
    features: Sequence[Tensor], reference: Boxes, num_objects: int
) -> list[tuple[slice, slice]]:
    """Images and objects of each part, of at most so many objects.

    Maps that are pooled where they lie go together, and others image by
    image, since each needs a copy.
    """
    in_place = FeatureSurface.is_in_place(features)
    counts = [len(reference.labels)] if in_place else reference.counts
    parts, start = [], 0
    for image, count in enumerate(counts):
        images = (
            slice(0, len(features[0])) if in_place else slice(image, image + 1)
        )
        parts += [
            (images, slice(first, min(first + num_objects, start + count)))
            for first in range(start, start + count, num_objects)
        ]
        start += count
    return parts


def _pooled_parts(
    refiner: nn.Module,
    features: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    reference: Boxes,
    candidates: Tensor,
    parts: Sequence[tuple[slice, slice]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pooled features and labels of each part, of which nothing is kept."""
    rows, samples = candidates.shape[:2]
    corners = relative_to_boxes(candidates, reference.corners[:, None])
    level = refiner.level_fn(reference)(corners).view(rows, samples)
    surface, images_there = None, None
    for images, objects in parts:
        if images != images_there:
            surface = None  # before there is another
            surface = refiner.roi_extractor.surface(
                [f[images] for f in features], image_sizes[images]
            )
            images_there = images
        index = reference.image_index[objects] - images.start
        yield (
            refiner.roi_extractor.pool(  # without a name: not kept
                surface,
                corners[objects].flatten(0, 1),
                repeat_rows(index, samples),
                level[objects].flatten(),
            ),
            repeat_rows(reference.labels[objects], samples),
        )


def whole_batch_fn(
    refiner: nn.Module,
    features: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    reference: Boxes,
) -> LogDensityFn:
    """f for training, as a function of relative coordinates.

    Arguments are those of :func:`energy_loss`.

    Returns:
        t (R, S, 4) -> f (R, S), with S candidates for each of R boxes.
    """
    return refiner.logdensity_fn(
        refiner.roi_extractor.surface(features, image_sizes), reference
    )


def image_by_image_fn(
    refiner: nn.Module,
    features: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    reference: Boxes,
) -> LogDensityFn:
    """The same, nothing being kept for the gradients.

    Images are evaluated one after the other, and again for the gradients. If
    the refiner's ``memory_saving`` leaves the choice, this is only done for
    many candidates, and where f is not differentiated in candidates or
    features, for which it would be a loss of time.
    """
    level_of = refiner.level_fn(reference)
    whole_batch = lru_cache(maxsize=1)(
        lambda: whole_batch_fn(refiner, features, image_sizes, reference)
    )

    @lru_cache(maxsize=1)
    def surface_of(image: int) -> FeatureSurface:
        return refiner.roi_extractor.surface(
            [f[image : image + 1] for f in features],
            image_sizes[image : image + 1],
        )

    def evaluate(
        image: int, corners: Tensor, level: Tensor, labels: Tensor
    ) -> Tensor:
        pooled = refiner.roi_extractor.pool(
            surface_of(image), corners, torch.zeros_like(level), level
        )
        return refiner.head(pooled, labels)

    def logdensity(relative: Tensor) -> Tensor:
        rows, samples = relative.shape[:2]
        others_learn = torch.is_grad_enabled() and (
            relative.requires_grad or any(f.requires_grad for f in features)
        )
        if refiner.memory_saving is None and (
            others_learn or not _is_much(refiner, relative)
        ):
            return whole_batch()(relative)
        corners = relative_to_boxes(
            relative, reference.corners[:, None].to(relative.dtype)
        )
        labels = repeat_rows(reference.labels, samples)
        # The boxes of an image, or some of them if they are many.
        images, sizes = [], []
        for image, count in enumerate(reference.counts):
            for start in range(0, count * samples, boxes.BOXES_PER_CHUNK):
                images.append(image)
                sizes.append(
                    min(boxes.BOXES_PER_CHUNK, count * samples - start)
                )
        parts = list(
            zip(
                images,
                corners.flatten(0, 1).split(sizes),
                level_of(corners).split(sizes),
                labels.split(sizes),
            )
        )
        if not parts:
            return whole_batch()(relative)
        return torch.cat(
            [
                checkpoint(
                    evaluate,
                    *part,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                for part in parts
            ]
        ).view(rows, samples)

    return logdensity


def of_all_processes(
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
        means = reduce_mean(
            torch.stack(
                [
                    loss.detach(),
                    *(figure * share for figure in figures.values()),
                ]
            )
        )
        named = dict(zip(named, means.unbind()))
        named['loss_energy'] = means[0] + (loss - loss.detach())
    return named
