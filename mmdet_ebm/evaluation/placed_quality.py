"""What placed boxes are worth on held-out images, and the choice by it.

AP of a few hundred images is noisy. The mean quality of matched boxes, with
and without placing, is not: it compares the same boxes. So it chooses how far
f and the clusters are trusted. AP of all objects at once, without classes,
chooses how boxes are ranked, and AP has a veto.
"""

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import InstanceList
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from torch import Tensor

from ..core import (
    CLASS_SCORE_ALONE,
    fit_deviations,
    object_probs,
    quality,
)
from ..models import EnergyDetector
from ..models.detectors.refinement import (
    box_table,
    judge,
    place_boxes,
    to_original_frame,
)
from ..ops import FeaturePyramid, boxes_to_sides, side_sizes
from .bootstrap import MatchedDetections
from .coco_matching import coco_results
from .density_fit import (
    detect_with_clusters,
    fit_shape,
    match_densities,
    matched_rows,
)
from .object_fit import fit_object_weights, object_evidence

# Matches that are enough to choose by.
_MAX_MATCHES = 4000
# Exponents of the expected quality that are tried.
POWERS = (0.0, 0.25, 0.5, 1.0)
# An f that is trusted this many times less than its likelihood says; not at
# all in the first place.
_NEVER = (math.inf,)
_CAUTION = (*_NEVER, 1.0, 2.0, 4.0)
# Deviations as the density tells them.
AS_TOLD = dict(std_factor=1.0, std_power=1.0)
# A difference of AP or of quality that says nothing.
_TIE = 5e-4


@dataclass
class PlacedBoxes:
    """What one setting of the density makes of held-out images.

    Attributes:
        gains: Of each image, the gains of quality of its matched boxes,
            weighted by their scores.
        results: For each image its detections in original pixels, with
            ``quality``, the expected one.
        errors: Of the sides (n, 4) of each batch's matched boxes, relative to
            the boxes.
        stds: What the density told of them, in the same unit.
    """

    gains: list[float] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    stds: list[Tensor] = field(default_factory=list)
    results: InstanceList = field(default_factory=list)


@dataclass
class Placed:
    """The same for several settings.

    Attributes:
        settings: Of each setting, by its place in the list.
        weight: Sum of the scores of all matched boxes.
        truth: The annotations.
        object_weights: Those that were fitted for the probability of an
            object; the class score alone without clusters.
    """

    settings: list[PlacedBoxes]
    weight: float
    truth: COCO
    object_weights: Mapping[str, float]

    def gain(self, setting: int) -> tuple[float, float]:
        """Mean gain of quality over the plain detector, and its error, which
        is infinite with a single image."""
        gains = np.array(self.settings[setting].gains)
        error = math.inf
        if len(gains) > 1:
            error = gains.std(ddof=1) * math.sqrt(len(gains))
        return gains.sum() / self.weight, error / self.weight

    def deviations(self, setting: int) -> dict[str, float]:
        """``std_factor`` and ``std_power``, see ``core.fit_deviations``."""
        found = self.settings[setting]
        factor, power = fit_deviations(
            torch.cat(found.errors), torch.cat(found.stds)
        )
        return dict(std_factor=factor, std_power=power)

    def average_precision(
        self,
        setting: int,
        power: float | None,
        by_class: bool = True,
        object_weights: Mapping[str, float] = CLASS_SCORE_ALONE,
    ) -> dict[str, float]:
        """AP, AP50, ... with an exponent of the expected quality.

        Args:
            setting: Which one.
            power: The exponent; None for the detector's boxes and scores.
            by_class: See ``MatchedDetections``.
            object_weights: Of the probability of an object.
        """
        results = self.settings[setting].results
        rows = [
            row
            for image, instances in enumerate(results)
            for row in coco_results(
                image, _refined(instances, power, object_weights)
            )
        ]
        matched = MatchedDetections(self.truth, rows, by_class)
        return matched.average_precision()


def place(
    model: EnergyDetector,
    batches: Iterable[dict],
    settings: Sequence[Mapping[str, float]],
) -> Placed:
    """Place the boxes of held-out images under several settings.

    Args:
        model: In eval mode; its density is as before at the end.
        batches: Of a test pipeline's loader; annotations are in
            original-image pixels. Reading ends after 4,000 matches.
        settings: Numbers of the density, by name.

    Raises:
        ValueError: If no detection of a score above 0 matches an annotation.
    """
    placed = [PlacedBoxes() for _ in settings]
    images: list[dict] = []
    annotations: list[dict] = []
    evidence: list[tuple[Tensor, ...]] = []
    weight, matches = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            found, pyramid, samples = detect_with_clusters(model, batch)
            rows, truth = matched_rows(found, samples)
            boxes = box_table(found)
            scores = torch.cat([each.scores for each in found])[rows]
            image = boxes.image_index[rows]
            weight, matches = weight + float(scores.sum()), matches + len(rows)
            evidence += object_evidence(found, samples, rows)
            before = _quality_of(boxes.corners[rows], truth)
            for sample in samples:
                annotations += _annotations(len(images), sample, annotations)
                images.append(dict(id=len(images)))
            for numbers, each in zip(settings, placed):
                results, std = _placed(model, found, pyramid, numbers)
                after = box_table(results).corners[rows]
                each.errors.append(boxes_to_sides(truth, after).cpu())
                each.stds.append((std[rows] / side_sizes(after)).cpu())
                gain = scores * (_quality_of(after, truth) - before)
                per_image = gain.new_zeros(len(found))
                each.gains += per_image.index_add(0, image, gain).tolist()
                each.results += [
                    to_original_frame(one, sample.metainfo).cpu()
                    for one, sample in zip(results, samples)
                ]
            if matches >= _MAX_MATCHES:
                break
    if weight == 0:
        raise ValueError(
            'no detection with a class score above 0 matches an annotation, '
            'so there is nothing to fit; is the detector trained?'
        )
    labels = [each.labels for each in placed[0].results] if placed else []
    return Placed(
        placed,
        weight,
        _coco(images, annotations, labels),
        fit_object_weights(evidence),
    )


def _placed(
    model: EnergyDetector,
    found: InstanceList,
    pyramid: FeaturePyramid,
    numbers: Mapping[str, float],
) -> tuple[InstanceList, Tensor]:
    """Detections under a setting with their expected quality, and (R, 4) the
    deviations of their sides, in pixels."""
    energy_model = model.energy_model
    density = energy_model.density
    usual = density.numbers()
    try:
        density.set_numbers(**{**numbers, **AS_TOLD})
        share = density.vote_share
        start = []
        for each in found:
            each = _copied(each)
            if 'prior_bboxes' in each:
                boxes = get_box_tensor(each.bboxes)
                each.prior_bboxes = boxes.lerp(each.prior_bboxes, share)
            start.append(each)
        stages = model.refinement
        placed, judged = place_boxes(energy_model, stages, pyramid, start)
        if judged is None:
            judged = judge(
                energy_model, pyramid, placed, stages.ascent_per_img
            )
        known = energy_model.uncertainty_of(
            judged.sides, judged.boxes, judged.prior
        )
    finally:
        density.set_numbers(**usual)
    for each, values in zip(placed, judged.qualities()):
        each.quality = values
    return placed, known.std


def fit_model(
    model: EnergyDetector, batches: Iterable[dict], ask_f: bool = True
) -> str:
    """Fit a model's density and say what came out.

    The likelihood of the annotations gives the shape of the density, for
    priors around the detector's boxes and around the means of their clusters.
    Among these and more cautious ones, the quality of the placed boxes
    decides; its gain must be larger than its error, else boxes stay. f is
    asked only where it is worth more than a tie. Then AP without classes says
    whether clusters have a say in the scores, and gives the exponent of the
    expected quality: the mean over the classes is too noisy for that. It only
    has a veto. Without f the exponent is 0, because the prior knows nothing of
    a single box.

    Args:
        model: In eval mode; its density is changed in place.
        batches: Held-out images, read twice; see ``match_densities``.
        ask_f: Whether f may have a say; without it the detector and its
            clusters are all there is.

    Returns:
        A line for the log.

    Raises:
        ValueError: If there is nothing to fit: no detection matches an
            annotation, or what was found is not finite.
    """
    density = model.energy_model.density
    matched = match_densities(model, batches)
    votes = (0.0, 1.0) if model.box_source.can_be_ordered else (0.0,)
    settings, gains = [], []
    for vote_share in votes:
        shape = fit_shape(matched, vote_share)
        gain = shape.pop('gain')
        for caution in _CAUTION if ask_f else _NEVER:
            temperature = caution * shape['temperature']
            settings.append(
                dict(shape, temperature=temperature, vote_share=vote_share)
            )
            gains.append(gain)
    placed = place(model, batches, settings)
    best = best_setting(
        [each['temperature'] for each in settings],
        [_sure_gain(placed, i) for i in range(len(settings))],
    )
    plain = placed.average_precision(0, None)['AP']
    asked = math.isfinite(settings[best]['temperature'])
    powers = POWERS if asked else (0.0,)
    for power, weights in _rankings(placed, best, powers):
        refined = placed.average_precision(best, power, True, weights)['AP']
        if refined >= plain:
            break
    text = f'AP {100 * plain:.1f} plain, {100 * refined:.1f} refined.'
    if refined < plain:
        best, power, weights = 0, 0.0, CLASS_SCORE_ALONE
        text += ' Refinement does not help here, so boxes will stay.'
    gain, error = placed.gain(best)
    density.set_numbers(
        **settings[best],
        quality_power=power,
        **weights,
        **placed.deviations(best),
    )
    density.fitted = True
    known = 'f is not asked.'
    if ask_f:
        known = (
            f'f tells {gains[best]:.2f} nats of an annotation more than the '
            f'detector does{"" if asked else ", too little: it is not asked"}.'
        )
    return (
        f'Density fitted on held-out images: {density.extra_repr()}. '
        f'{known} Placed boxes gain {100 * gain:.2f} +- '
        f'{100 * error:.2f} points of quality. {text}'
        + _if_run_otherwise(model)
    )


def _if_run_otherwise(model: EnergyDetector) -> str:
    """What the figures of the fit leave out, if anything."""
    wanted = dict(energy_nms=False, ascent=True, rank=True)
    other = [
        f'{name}={not value}'
        for name, value in wanted.items()
        if getattr(model.refinement, name) != value
    ]
    if not other:
        return ''
    return (
        f' These figures are not of model.refinement with {", ".join(other)}, '
        'as the config has it: measure that with tools/test.py.'
    )


def best_setting(
    temperatures: Sequence[float], sure_gains: Sequence[float]
) -> int:
    """The number of the setting with the largest gain.

    One that asks f must be worth more than a tie over all that do not. With
    the first setting boxes stay, so others must be better than it.
    """
    numbers = range(len(temperatures))
    without_f = [i for i in numbers if math.isinf(temperatures[i])]
    quiet = max(without_f, key=sure_gains.__getitem__)
    best = max(numbers, key=sure_gains.__getitem__)
    worth = sure_gains[best] > sure_gains[quiet] + _TIE
    return best if worth else quiet


def largest_good_power(ap: Mapping[float, float]) -> float:
    """The largest exponent within 0.05 points of the best AP."""
    enough = max(ap.values()) - _TIE
    return max(power for power, value in ap.items() if value >= enough)


def _rankings(
    placed: Placed, setting: int, powers: Sequence[float]
) -> list[tuple[float, Mapping[str, float]]]:
    """Exponent and weights of an object, the best first; without clusters
    last. Clusters must be worth more than a tie."""

    def by_power(weights: Mapping[str, float]) -> dict[float, float]:
        return {
            p: placed.average_precision(setting, p, False, weights)['AP']
            for p in powers
        }

    alone = by_power(CLASS_SCORE_ALONE)
    rankings = [(largest_good_power(alone), CLASS_SCORE_ALONE)]
    weights = placed.object_weights
    if weights != CLASS_SCORE_ALONE:
        weighed = by_power(weights)
        if max(weighed.values()) > max(alone.values()) + _TIE:
            rankings.insert(0, (largest_good_power(weighed), weights))
    return rankings


def _sure_gain(placed: Placed, setting: int) -> float:
    gain, error = placed.gain(setting)
    return gain - error


def _quality_of(boxes: Tensor, truth: Tensor) -> Tensor:
    return quality(bbox_overlaps(boxes, truth, is_aligned=True))


def _coco(
    images: list[dict], annotations: list[dict], labels: Sequence[Tensor]
) -> COCO:
    classes = {each['category_id'] for each in annotations}
    classes |= {label for each in labels for label in each.tolist()}
    truth = COCO()
    truth.dataset = dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=c, name=str(c)) for c in sorted(classes)],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _annotations(
    image: int, sample: DetDataSample, known: Sequence[dict]
) -> list[dict]:
    rows = []
    for name, crowd in (('gt_instances', 0), ('ignored_instances', 1)):
        if name not in sample:
            continue
        truth = sample.get(name)
        for (x1, y1, x2, y2), label in zip(
            get_box_tensor(truth.bboxes).tolist(), truth.labels.tolist()
        ):
            width, height = x2 - x1, y2 - y1
            rows.append(
                dict(
                    id=len(known) + len(rows) + 1,
                    image_id=image,
                    category_id=label,
                    bbox=[x1, y1, width, height],
                    area=width * height,
                    iscrowd=crowd,
                )
            )
    return rows


def _refined(
    instances: InstanceData,
    power: float | None,
    weights: Mapping[str, float],
) -> InstanceData:
    """Refined detections; the detector's own without a power."""
    if power is None:
        boxes, scores = instances.initial_bboxes, instances.scores
    else:
        boxes = instances.bboxes
        probs = object_probs(
            instances.scores, instances.get('cluster_support'), weights
        )
        scores = probs * instances.quality**power
    return InstanceData(bboxes=boxes, scores=scores, labels=instances.labels)


def _copied(instances: InstanceData) -> InstanceData:
    return InstanceData(metainfo=instances.metainfo, **dict(instances.items()))
