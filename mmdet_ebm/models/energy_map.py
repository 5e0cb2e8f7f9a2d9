"""The log-density around one detection, to be looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import BoxPrior
from ..ops import (
    Boxes,
    boxes_to_relative,
    boxes_to_sides,
    clip_boxes,
    relative_to_boxes,
)
from .detectors import Detected
from .detectors.refinement import prior_of
from .energy_model import EnergyModel

# Half of a map's side: at least the first, at most the second.
_RANGE = (0.1, 0.6)
# Pixels from which on a box is drawn as another one.
_MOVED = 1e-3


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
        path: (P, 4) relative coordinates of the ascent, then of the medians;
            the refined box is the last.
        logdensity: (P,) log-densities along the path, not normalised.
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


@dataclass(frozen=True)
class BoxReadings:
    """What the density of one detection says of B boxes.

    Attributes:
        logdensity: (B,) f.
        logprob: (B,) normalised log-densities, relative to the size of the
            refined box; the normaliser is that of the densities of sides.
        quality: (B,) expected qualities, between 0 and 1.
    """

    logdensity: Tensor
    logprob: Tensor
    quality: Tensor


@torch.no_grad()
def read_boxes(
    energy_model: EnergyModel,
    found: Detected,
    image: int,
    detection: int,
    boxes: Tensor,
) -> BoxReadings:
    """Ask the density of one detection about any boxes.

    The log-probability of the detection itself is the one that it carries, if
    it does. Else f is looked at from the detection, and no longer from where
    its ascent ended, which differs a little.

    Args:
        energy_model: The detector's energy model.
        found: What ``EnergyDetector.detect`` found in the batch.
        image: Which image of the batch.
        detection: Which of its detections.
        boxes: (B, 4) corners in network-input pixels.

    Raises:
        IndexError: If there is no such detection.
    """
    start, prior = _start_and_prior(energy_model, found, image, detection)
    placed = found.instances[image].bboxes[detection][None]
    f = energy_model.corner_logdensity_fn(found.pyramid, start)
    with_placed = torch.cat([placed, boxes.to(placed)])[None]
    values = f(with_placed)[0]
    density = energy_model.density
    logprob = values / density.temperature
    logprob = logprob + density.logprior(prior, with_placed)[0]
    end = replace(start, corners=placed)
    sides = energy_model.side_densities(found.pyramid, end, prior)
    instances = found.instances[image]
    if 'box_logprobs' in instances:  # so that the readings agree with it
        at_placed = instances.box_logprobs[detection]
    else:
        at_placed = energy_model.uncertainty_of(sides, end, prior).logprob[0]
    offset = at_placed - logprob[0]
    there = boxes_to_sides(with_placed[0, 1:], prior.centres)
    return BoxReadings(
        values[1:],
        logprob[1:] + offset,
        replace(sides, placed=there).expected_quality(),
    )


@torch.no_grad()
def compute_energy_map(
    energy_model: EnergyModel,
    found: Detected,
    image: int,
    detection: int,
    scale_factor: Sequence[float] = (1.0, 1.0),
    resolution: int = 41,
) -> EnergyMap:
    """Look at one detection of a batch.

    Args:
        energy_model: The detector's energy model.
        found: What ``EnergyDetector.detect`` found in the batch.
        image: Which image of the batch.
        detection: Which of its detections.
        scale_factor: Network-input pixels per original pixel along x and y.
        resolution: S, points along each side of a map.

    Raises:
        IndexError: If there is no such detection.
    """
    pyramid = found.pyramid
    start, prior, path = _ascent_path(energy_model, found, image, detection)
    end = path[-1:]
    # The level of the initial box throughout, as in the ascent.
    of_corners = energy_model.density.of_corners(
        energy_model.corner_logdensity_fn(pyramid, start), prior
    )

    def f(relative: Tensor) -> Tensor:
        return of_corners(relative_to_boxes(relative, end))

    relative = boxes_to_relative(path, end)
    known = energy_model.uncertainty(
        pyramid, replace(start, corners=end), prior
    )
    deviation = known.covariance[0].diagonal().sqrt().nan_to_num(0.0)
    at_end = f(torch.zeros_like(end)[:, None])[0, 0]
    # Normalised; by the maximum where that is not known.
    offset = (known.logprob[0] - at_end).nan_to_num(-float(at_end))

    def grid(first: int) -> tuple[Tensor, Tensor]:
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
        return axis.cpu(), (torch.stack(values) + offset).cpu()

    shift, centre_map = grid(0)
    log_size, size_map = grid(2)
    scale = relative.new_tensor(scale_factor).repeat(2)
    return EnergyMap(
        shift,
        centre_map,
        log_size,
        size_map,
        relative.cpu(),
        f(relative[None])[0].cpu(),
        (path / scale).cpu(),
        (known.std[0] / scale).cpu(),
    )


def _ascent_path(
    energy_model: EnergyModel, found: Detected, image: int, detection: int
) -> tuple[Boxes, BoxPrior, Tensor]:
    """The box that an ascent started from, its prior and corners (P, 4), the
    last of them those of the detection."""
    start, prior = _start_and_prior(energy_model, found, image, detection)
    instances = found.instances[image]
    if 'initial_bboxes' not in instances:
        return start, prior, start.corners
    refined = energy_model.refine(found.pyramid, start, prior)
    path = refined.info.trajectory[:, 0]
    index = start.image_index.expand(len(path))
    path = clip_boxes(path, index, found.pyramid.image_sizes)
    placed = instances.bboxes[detection][None]
    if (placed - path[-1]).abs().max() > _MOVED:  # to the medians
        path = torch.cat([path, placed])
    return start, prior, path


def _start_and_prior(
    energy_model: EnergyModel, found: Detected, image: int, detection: int
) -> tuple[Boxes, BoxPrior]:
    """The centre of a detection's prior, and the prior."""
    instances = found.instances[image]
    if not 0 <= detection < len(instances):
        raise IndexError(
            f'there is no detection {detection}: the image has '
            f'{len(instances)}'
        )
    row = slice(detection, detection + 1)
    prior = prior_of(energy_model.density, [instances[row]])
    labels = instances.labels[row]
    index = torch.full_like(labels, image)
    return Boxes(prior.centres, labels, index, (1,)), prior
