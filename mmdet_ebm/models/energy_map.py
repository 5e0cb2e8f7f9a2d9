"""The log-density around one detection, to be looked at."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from ..ops import FeatureSurface, boxes_to_relative, relative_to_boxes
from .refiner import Boxes, EnergyRefiner
from .surface_tap import network_boxes

# Half of a map's side: at least the first, at most the second.
_RANGE = (0.1, 0.6)


@dataclass(frozen=True)
class EnergyMap:
    """Normalised log-densities around a refined box, and how it got there.

    Everything is on the CPU. Relative coordinates are those of the refined
    box, see ``mmdet_ebm.ops.relative_boxes``; corners are original-image
    pixels.

    Attributes:
        shift: (S,) shifts of the centre, over the box's size.
        centre_map: (S, S) by shift in y and in x, at the box's size.
        log_size: (S,) logarithms of size over the box's size.
        size_map: (S, S) by height and width, at the box's centre.
        path: (P, 4) relative coordinates of the ascent, the refined box last.
        logdensity: (P,) f along the path, not normalised.
        corners: (P, 4) of the path.
        std: (4,) standard deviations of the refined box's sides.
    """

    shift: Tensor
    centre_map: Tensor
    log_size: Tensor
    size_map: Tensor
    path: Tensor
    logdensity: Tensor
    corners: Tensor
    std: Tensor


@torch.no_grad()
def compute_energy_map(
    refiner: EnergyRefiner,
    surface: FeatureSurface,
    samples: Sequence[DetDataSample],
    image: int,
    detection: int,
    resolution: int = 41,
) -> EnergyMap:
    """Look at one detection of a batch.

    Args:
        refiner: The detector's energy model.
        surface: On which the batch was refined, see ``SurfaceTap``.
        samples: Results of the batch, in original-image pixels.
        image: Which image of the batch.
        detection: Which of its detections.
        resolution: S, points along each side of a map.

    Raises:
        IndexError: If there is no such detection.
    """
    found = samples[image].pred_instances
    if not 0 <= detection < len(found):
        raise IndexError(
            f'there is no detection {detection}: the image has {len(found)}'
        )
    path = _ascent_path(refiner, surface, samples, image, detection)
    start, end = _rows(path, 0), _rows(path, len(path.labels) - 1)
    # The level of the initial box throughout, as in the ascent.
    of_corners = refiner.corner_logdensity_fn(surface, start)

    def f(relative: Tensor) -> Tensor:
        return of_corners(relative_to_boxes(relative, end.corners))

    relative = boxes_to_relative(path.corners, end.corners)
    known = refiner.uncertainty_estimator(f, end.corners)
    deviation = known.covariance[0].diagonal().sqrt().nan_to_num(0.0)
    at_end = f(torch.zeros_like(end.corners)[:, None])[0, 0]
    # Normalised as the estimator does; by the maximum where it cannot tell.
    temperature = refiner.uncertainty_estimator.temperature
    offset = (known.logprob[0] - at_end / temperature).nan_to_num(
        -float(at_end) / temperature
    )

    def grid(first):
        reach = torch.maximum(
            1.3 * relative[:, first : first + 2].abs().max(),
            3 * deviation[first : first + 2].max(),
        )
        axis = torch.linspace(-1, 1, resolution).to(relative) * reach.clamp(
            *_RANGE
        )
        points = relative.new_zeros(resolution, resolution, 4)
        points[..., first + 1], points[..., first] = torch.meshgrid(
            axis, axis, indexing='ij'
        )
        values = [f(part[None])[0] for part in points]  # row by row
        return axis.cpu(), (torch.stack(values) / temperature + offset).cpu()

    shift, centre_map = grid(0)
    log_size, size_map = grid(2)
    scale = samples[image].metainfo.get('scale_factor', (1.0, 1.0))
    scale = relative.new_tensor(scale).repeat(2)
    return EnergyMap(
        shift,
        centre_map,
        log_size,
        size_map,
        relative.cpu(),
        f(relative[None])[0].cpu(),
        (path.corners / scale).cpu(),
        (known.std[0] / scale).cpu(),
    )


def _ascent_path(refiner, surface, samples, image, detection) -> Boxes:
    """Boxes after 0, 1, ... steps, by ascents of that many steps."""
    field = (
        'initial_bboxes'
        if 'initial_bboxes' in samples[image].pred_instances
        else 'bboxes'
    )
    boxes, sizes = network_boxes(samples, field)
    start = _rows(boxes, sum(boxes.counts[:image]) + detection)
    corners = [start.corners]
    if field == 'initial_bboxes':
        usual = refiner.num_steps
        try:
            for steps in range(1, usual + 1):
                refiner.num_steps = steps
                corners.append(_refined(refiner, surface, start, sizes, image))
        finally:
            refiner.num_steps = usual
    rows = len(corners)
    return Boxes(
        torch.cat(corners),
        start.labels.expand(rows),
        start.image_index.expand(rows),
        (rows,),
    )


def _refined(refiner, surface, start, sizes, image) -> Tensor:
    # Only this image has a box.
    counts = [0] * len(sizes)
    counts[image] = 1
    return refiner.refine(
        surface,
        Boxes(start.corners, start.labels, start.image_index, tuple(counts)),
        sizes,
    ).corners


def _rows(boxes: Boxes, row: int) -> Boxes:
    part = slice(row, row + 1)
    return Boxes(
        boxes.corners[part], boxes.labels[part], boxes.image_index[part], (1,)
    )
