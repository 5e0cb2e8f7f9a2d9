"""Fit a density of boxes to a tracker, on tracks nobody was trained on.

As for detectors (:mod:`.density_fit`, :mod:`.placed_quality`): the likelihood
of the true boxes gives the shape of the density, among frames in which the
tracker is not lost. How far f is trusted is then decided by what the refined
boxes are worth in all frames. If they do not gain more than the error of the
gain, boxes stay where the tracker puts them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..core import fit_deviations
from ..models.trackers import TargetConditionalEnergy, TrackRefiner
from ..models.trackers.target_energy_model import boxes_of_one
from ..ops import boxes_to_sides, sides_to_boxes
from ..tracking import Track, box_overlaps, evaluate_boxes, read_frame
from .density_fit import MatchedDensities, fit_shape, side_noise
from .placed_quality import AS_TOLD

# Overlap from which on a tracker is not lost.
_MIN_IOU = 0.5
_SAMPLES = 256
# Factors on T: f may deserve less trust than its likelihood says.
_CAUTION = (1.0, 2.0, 4.0, math.inf)


@dataclass(frozen=True)
class TrackerFit:
    """A density fitted to a tracker.

    Attributes:
        numbers: Of the ``BoxDensity``.
        gain: Mean gain of the success AUC over the held-out tracks.
        error: Standard error of that mean.
        matches: Frames behind the shape.
    """

    numbers: dict[str, float]
    gain: float
    error: float
    matches: int

    def __str__(self) -> str:
        """A line for the log."""
        numbers = ', '.join(f'{k}={v:.3g}' for k, v in self.numbers.items())
        return (
            f'{numbers}; {self.matches} frames. Held-out AUC '
            f'{100 * self.gain:+.2f} +- {100 * self.error:.2f}'
        )


def fit_tracker(
    model: TargetConditionalEnergy,
    tracks: Sequence[Track],
    boxes: Mapping[str, np.ndarray],
) -> TrackerFit:
    """Fit the density of a model to a tracker; it is set in the model.

    Args:
        model: In eval mode.
        tracks: That neither the model nor the tracker was trained on.
        boxes: The tracker's, (T, 4) for the name of each track.

    Raises:
        ValueError: If the tracker is lost everywhere.
    """
    density = model.energy_model.density
    matched = match_track_densities(model, tracks, boxes)
    shape = fit_shape(matched, 0.0)
    del shape['gain']
    best = None
    for caution in _CAUTION:
        numbers = dict(
            shape,
            temperature=caution * shape['temperature'],
            **AS_TOLD,
        )
        density.set_numbers(**numbers)
        gains = np.array([_gain(model, t, boxes[t.name]) for t in tracks])
        error = float(gains.std() / math.sqrt(len(gains)))
        found = TrackerFit(
            numbers, float(gains.mean()), error, len(matched.truth)
        )
        # The last one leaves boxes where they are: its gain is 0.
        if best is None or found.gain - error > best.gain - best.error:
            best = found
    assert best is not None
    density.set_numbers(**best.numbers)
    deviations = _deviations(model, tracks, boxes)
    best = replace(best, numbers={**best.numbers, **deviations})
    density.set_numbers(**best.numbers)
    density.fitted = True
    return best


def _deviations(
    model: TargetConditionalEnergy,
    tracks: Sequence[Track],
    boxes: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """What makes deviations of sides agree with the errors that were seen.

    Frames count in which the refined box overlaps the true one by more than
    a half; if the boxes stay where they are, nothing is told of them.
    """
    errors, stds = [], []
    for track in tracks:
        refined = TrackRefiner(model, True).track(track, boxes[track.name])
        near = box_overlaps(refined.boxes, track.boxes) >= _MIN_IOU
        near[0] = False  # the target itself
        size = np.tile(refined.boxes[:, 2:] - refined.boxes[:, :2], 2)
        errors.append(((refined.boxes - track.boxes) / size)[near])
        stds.append((refined.std / size)[near])
    factor, power = fit_deviations(
        *(torch.from_numpy(np.concatenate(e)) for e in (errors, stds))
    )
    return dict(std_factor=factor, std_power=power)


def _gain(
    model: TargetConditionalEnergy, track: Track, boxes: np.ndarray
) -> float:
    refined = TrackRefiner(model).track(track, boxes).boxes
    before, after = (
        evaluate_boxes(each, track.boxes).auc for each in (boxes, refined)
    )
    return after - before


def match_track_densities(
    model: TargetConditionalEnergy,
    tracks: Sequence[Track],
    boxes: Mapping[str, np.ndarray],
) -> MatchedDensities:
    """Look at f around a tracker's boxes where it is not lost.

    Arguments and errors as of :func:`fit_tracker`. Trackers give no score
    here; sizes are those in the patches, which are all alike.
    """
    offsets = side_noise(_SAMPLES)
    rows = []
    for track in tracks:
        overlaps = box_overlaps(boxes[track.name], track.boxes)
        template = None
        for t, path in enumerate(track.frames):
            frame = read_frame(path)
            if frame is None:
                continue
            if template is None:
                template = model.template(frame, track.boxes[0])
            elif overlaps[t] >= _MIN_IOU:  # False for NaN
                box, truth = boxes[track.name][t], track.boxes[t]
                scene, region = model.scene(frame, template, box)
                corners, target = (
                    scene.modulation.new_tensor(region.to_patch(each)[None])
                    for each in (box, truth)
                )
                others = sides_to_boxes(offsets.to(corners), corners[:, None])
                around = torch.cat([target[:, None], others], 1)
                table = boxes_of_one(corners)
                with torch.no_grad():
                    f = model.energy_model.corner_logdensity_fn(scene, table)(
                        around
                    )
                rows.append((boxes_to_sides(target, corners), f))
    if not rows:
        raise ValueError(
            'the tracker is lost in every frame of the held-out tracks, so '
            'there is nothing to fit'
        )
    truth, f = (torch.cat(each).double().cpu() for each in zip(*rows))
    nothing = torch.zeros(len(f), dtype=torch.float64)
    return MatchedDensities(
        truth=truth,
        at_truth=f[:, 0],
        offsets=offsets.double(),
        logdensity=f[:, 1:],
        voted=torch.zeros_like(truth),
        log_odds=nothing,
        log_size=nothing,
    )
