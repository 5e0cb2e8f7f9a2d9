"""What a training step needs around the log-density of boxes."""

import math
from functools import lru_cache, partial
from typing import Sequence

import torch
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core import LogDensityFn
from ..ops import FeatureSurface, relative_to_boxes
from . import boxes
from .boxes import Boxes, repeat_rows


# Pooled features from which on it is faster on a CPU not to keep them, because
# fresh memory costs more there: 256 MiB of float32.
_MANY_VALUES = 1 << 26


def whole_batch_fn(refiner: nn.Module, features: Sequence[Tensor],
                   image_sizes: Sequence[tuple[int, int]],
                   reference: Boxes) -> LogDensityFn:
    """f for training, as a function of relative coordinates.

    Args:
        refiner: An ``EnergyRefiner``.
        features: Maps (N, C, H_l, W_l) of each level; get gradients if they
            require them.
        image_sizes: Height and width of each image inside its padding.
        reference: Boxes of the batch.

    Returns:
        t (R, S, 4) -> f (R, S), with S candidates for each of R boxes.
    """
    return refiner.logdensity_fn(
        refiner.roi_extractor.surface(features, image_sizes), reference)


def image_by_image_fn(refiner: nn.Module, features: Sequence[Tensor],
                      image_sizes: Sequence[tuple[int, int]],
                      reference: Boxes) -> LogDensityFn:
    """The same, little being kept for the gradients.

    Images are pooled one after the other, and again for the gradients of the
    parameters. Where f is differentiated in the candidates or in the features,
    all of it is evaluated again. If the refiner's ``memory_saving`` leaves the
    choice, both are done only where they are no loss of time: not in the
    latter case, and not for few candidates.
    """
    level_of = refiner.level_fn(reference)
    whole_batch = lru_cache(maxsize=1)(
        lambda: whole_batch_fn(refiner, features, image_sizes, reference))

    @lru_cache(maxsize=1)
    def surface_of(image: int) -> FeatureSurface:
        return refiner.roi_extractor.surface(
            [f[image:image + 1] for f in features],
            image_sizes[image:image + 1])

    def pool(image: int, corners: Tensor, level: Tensor) -> Tensor:
        return refiner.roi_extractor.pool(surface_of(image), corners,
                                          torch.zeros_like(level), level)

    def evaluate(image: int, corners: Tensor, level: Tensor,
                 labels: Tensor) -> Tensor:
        return refiner.head(pool(image, corners, level), labels)

    def logdensity(relative: Tensor) -> Tensor:
        again = torch.is_grad_enabled() and (
            relative.requires_grad or any(f.requires_grad for f in features))
        rows, samples = relative.shape[:2]
        pooled = rows * samples * math.prod(refiner.head.in_shape)
        if refiner.memory_saving is None and (again or pooled < _MANY_VALUES):
            return whole_batch()(relative)
        corners = relative_to_boxes(
            relative, reference.corners[:, None].to(relative.dtype))
        labels = repeat_rows(reference.labels, samples)
        # The boxes of an image, or some of them if they are many.
        images, sizes = [], []
        for image, count in enumerate(reference.counts):
            for start in range(0, count * samples, boxes.BOXES_PER_CHUNK):
                images.append(image)
                sizes.append(min(boxes.BOXES_PER_CHUNK,
                                 count * samples - start))
        parts = list(zip(images, corners.flatten(0, 1).split(sizes),
                         level_of(corners).split(sizes)))
        if parts and again:
            values = torch.cat([
                checkpoint(evaluate, *part, label, use_reentrant=False,
                           preserve_rng_state=False)
                for part, label in zip(parts, labels.split(sizes))])
        else:
            values = refiner.head.forward_repooled(
                [partial(pool, *part) for part in parts], labels)
        return values.view(rows, samples)

    return logdensity


def of_all_processes(loss: Tensor, figures: dict[str, Tensor],
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
