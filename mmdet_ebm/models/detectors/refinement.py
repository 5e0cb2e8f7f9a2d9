"""The stages that follow a detector's boxes, in network-input pixels.

Detections, with the means of their clusters -> gradient ascent -> the medians
of the sides -> how good and how sure the boxes are. As published, but off by
default, log-densities order the NMS before that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from mmcv.ops import batched_nms
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import ConfigType, InstanceList, OptConfigType
from mmengine.structures import InstanceData
from torch import Tensor

from ...core import BoxDensity, BoxPrior, SideDensities, side_densities
from ...ops import (
    Boxes,
    FeaturePyramid,
    boxes_to_sides,
    clip_boxes,
    sides_to_boxes,
)
from ..energy_model import EnergyModel
from .box_sources import require_plain_nms

# Fields (K, 4) of results whose columns are along x, y, x, y, in pixels.
PIXEL_FIELDS = ('bboxes', 'initial_bboxes', 'prior_bboxes', 'box_std')


@dataclass(frozen=True)
class Refinement:
    """Which stages run at test time.

    Attributes:
        energy_nms: Order NMS by log-density rather than by class score, as
            published.
        ascent: Move the final boxes uphill.
        medians: After the ascent, put the sides of boxes at the medians of
            their densities, which a prior gives them; a median has the least
            expected distance from the true side.
        ascent_per_img: Boxes of an image that f is asked about at most, by
            class score; -1 for all. The others are placed, ranked and
            described by the prior alone; most detections of an image have
            scores near zero and decide nothing.
        rank: Give detections the probability of an object, by class score
            and cluster, times the expected quality of the box to a power, as
            far as these were fitted. It runs beside another stage only.
        nms_pre: Candidates (box and class above the score threshold) of an
            image that enter the energy NMS and the clusters at most, by class
            score; -1 for all. It bounds time and memory where a detector is
            unsure of everything.
        uncertainty: Tell how sure the final boxes are: standard deviations of
            their sides and normalised log-densities.
        keep_plain: Also give what the detector finds by itself, as
            ``plain_instances`` of a sample, for a metric to compare with.
    """

    energy_nms: bool = False
    ascent: bool = True
    medians: bool = True
    ascent_per_img: int = 20
    rank: bool = True
    nms_pre: int = 1000
    uncertainty: bool = False
    keep_plain: bool = False

    @property
    def is_on(self) -> bool:
        """Whether any stage runs."""
        return self.energy_nms or self.ascent or self.uncertainty

    def asks_f(self, density: BoxDensity) -> bool:
        """Whether the learned log-density has a say."""
        return self.energy_nms or not math.isinf(density.temperature)

    def asks_clusters(self, density: BoxDensity) -> bool:
        """Whether the boxes that NMS throws away have a say."""
        return density.vote_share > 0 or (
            self.rank and density.weighs_clusters
        )


def refine_detections(
    energy_model: EnergyModel,
    stages: Refinement,
    pyramid: FeaturePyramid,
    detections: InstanceList,
    test_cfg: OptConfigType = None,
) -> tuple[InstanceList, InstanceList | None]:
    """The stages, one after the other.

    Args:
        energy_model: What is asked about boxes.
        stages: Which stages run.
        pyramid: Of the batch's maps.
        detections: For each image ``bboxes`` (K, 4), ``scores`` (K,) and
            ``labels`` (K,): with ``test_cfg`` all candidates above the score
            threshold, before any NMS; without it, detections.
        test_cfg: With ``nms`` and, perhaps, ``max_per_img``.

    Returns:
        New instances with the fields of ``detections``; with votes
        ``prior_bboxes`` (K, 4), the centres of the prior; where clusters have
        a say, ``cluster_support`` (K, 2), their counts and masses; with the
        energy NMS or an ascent ``logdensities`` (K,), NaN for boxes that no
        stage looked at, and after an ascent those where it ended; after an
        ascent also ``initial_bboxes`` (K, 4), the detector's; with ``rank``
        also ``class_scores`` (K,), the scores before, ``object_probs`` (K,),
        the probabilities of an object, and, where the quality has a say,
        ``qualities`` (K,), the expected ones in [0, 1]; with ``uncertainty``
        also ``box_std`` (K, 4), standard deviations of x1, y1, x2, y2, and
        ``box_logprobs`` (K,). Then, with ``keep_plain``, the detections
        without any stage.

    Raises:
        ValueError: If boxes are not of four corners, or the NMS to replace is
            of another kind.
    """
    candidates, plain = detections, None
    if test_cfg is not None:
        candidates = [best_candidates(c, stages.nms_pre) for c in detections]
        if stages.keep_plain or not stages.energy_nms:
            detections = [after_nms(c, test_cfg) for c in detections]
    if stages.keep_plain:
        plain = [_copied(d) for d in detections]
    if test_cfg is not None and stages.energy_nms:
        detections = order_by_energy(
            energy_model, pyramid, candidates, test_cfg
        )
    density = energy_model.density
    if stages.asks_clusters(density) and test_cfg is not None:
        detections = with_clusters(
            detections, candidates, test_cfg, density.vote_share
        )
    judged = None
    if stages.ascent:
        detections, judged = place_boxes(
            energy_model, stages, pyramid, detections
        )
    by_quality = stages.rank and density.quality_power > 0
    if judged is None and (by_quality or stages.uncertainty):
        judged = judge(
            energy_model, pyramid, detections, stages.ascent_per_img
        )
    if stages.uncertainty:
        detections = describe(energy_model, pyramid, detections, judged)
    if by_quality or stages.rank and density.weighs_clusters:
        detections = rank(detections, judged if by_quality else None, density)
    return detections, plain


def place_boxes(
    energy_model: EnergyModel,
    stages: Refinement,
    pyramid: FeaturePyramid,
    detections: InstanceList,
) -> tuple[InstanceList, 'Judged | None']:
    """The ascent, and with ``stages.medians`` the medians.

    Args:
        energy_model: What is asked about boxes.
        stages: How boxes are placed.
        pyramid: Of the batch's maps.
        detections: Where the ascent starts.

    Returns:
        The placed boxes, and what the densities of their sides say; None
        without medians, where nothing has looked at these yet.
    """
    density, number = energy_model.density, stages.ascent_per_img
    if not stages.medians or not has_medians(density):
        return ascend(energy_model, pyramid, detections, number), None
    # The look at the sides tells f where the last step led, so that it is not
    # asked twice.
    detections = ascend(
        energy_model, pyramid, detections, number, check_last=False
    )
    judged = to_medians(
        energy_model, judge(energy_model, pyramid, detections, number)
    )
    boxes = judged.boxes
    ends = boxes.split(boxes.corners, judged.logdensities)
    detections = [
        _with_fields(
            each,
            bboxes=corners,
            logdensities=torch.where(f.isnan(), each.logdensities, f),
        )
        for each, (corners, f) in zip(detections, ends)
    ]
    return detections, judged


def order_by_energy(
    energy_model: EnergyModel,
    pyramid: FeaturePyramid,
    candidates: InstanceList,
    test_cfg: ConfigType,
) -> InstanceList:
    """NMS ordered by log-density, see :func:`energy_nms`.

    Args:
        energy_model: What is asked about boxes.
        pyramid: Of the batch's maps.
        candidates: Boxes, scores and labels of each image.
        test_cfg: With ``nms`` and ``max_per_img``.
    """
    threshold = require_plain_nms(test_cfg).iou_threshold
    boxes = box_table(candidates)
    logdensity = energy_model.logdensity(pyramid, boxes)
    results = []
    for candidate, (corners, values) in zip(
        candidates, boxes.split(boxes.corners, logdensity)
    ):
        keep, scores = energy_nms(
            corners,
            candidate.scores,
            candidate.labels,
            values,
            threshold,
            test_cfg.get('max_per_img', -1),
        )
        results.append(
            _with_fields(
                candidate[keep],
                bboxes=corners[keep],
                scores=scores,
                logdensities=values[keep],
            )
        )
    return results


def with_clusters(
    detections: InstanceList,
    candidates: InstanceList,
    test_cfg: ConfigType,
    share: float,
) -> InstanceList:
    """What the boxes say that NMS would throw away.

    Args:
        detections: After NMS.
        candidates: Before it.
        test_cfg: With ``nms``.
        share: 0 leaves the centres of the prior at the boxes, 1 puts them at
            the means of the clusters.

    Returns:
        Detections with ``cluster_support`` (K, 2), counts and masses of the
        clusters, and with a share ``prior_bboxes`` (K, 4).
    """
    threshold = require_plain_nms(test_cfg).iou_threshold
    results = []
    for detection, candidate in zip(detections, candidates):
        clusters = clusters_of(detection, candidate, threshold)
        support = torch.stack([clusters.count, clusters.mass], 1)
        fields = dict(cluster_support=support)
        if share > 0:
            boxes = get_box_tensor(detection.bboxes)
            fields['prior_bboxes'] = boxes.lerp(clusters.mean, share)
        results.append(_with_fields(detection, **fields))
    return results


@dataclass(frozen=True)
class Clusters:
    """The boxes around K detections of one image, themselves included.

    A cluster has the candidates of the same class that overlap the detection
    by more than the threshold of NMS.

    Attributes:
        mean: (K, 4) their mean, as corners; a detection without a cluster
            stays.
        count: (K,) how many there are; those that are farther away count
            less.
        mass: (K,) the sum of their class scores; as above.
    """

    mean: Tensor
    count: Tensor
    mass: Tensor


def clusters_of(
    detections: InstanceData,
    candidates: InstanceData,
    iou_threshold: float,
    width: float = 0.05,
) -> Clusters:
    r"""Clusters of detections.

    A candidate of score s and IoU u with a detection of its class counts
    :math:`w = \exp(-(1 - u)^2 / \mathrm{width})`, and in mean and mass
    :math:`s w`.

    Args:
        detections: K of one image.
        candidates: R of the same image.
        iou_threshold: IoU above which a candidate belongs to a cluster.
        width: See above.

    Source of the mean: "Bounding Box Regression with Uncertainty for Accurate
    Object Detection" (variance voting), CVPR 2019, arXiv 1809.08545.
    """
    boxes, others = (
        get_box_tensor(each.bboxes) for each in (detections, candidates)
    )
    iou = bbox_overlaps(boxes, others)
    joined = (iou > iou_threshold) & (
        detections.labels[:, None] == candidates.labels[None]
    )
    near = (-((1 - iou).square()) / width).exp()
    near = torch.where(joined, near, 0)
    weight = candidates.scores * near
    mass = weight.sum(1)
    total = mass[:, None]
    mean = weight @ others / total.clamp(min=torch.finfo(total.dtype).tiny)
    return Clusters(torch.where(total > 0, mean, boxes), near.sum(1), mass)


def ascend(
    energy_model: EnergyModel,
    pyramid: FeaturePyramid,
    detections: InstanceList,
    number: int,
    check_last: bool = True,
) -> InstanceList:
    """Gradient ascent from boxes, see ``EnergyModel.refine``.

    Args:
        energy_model: What is asked about boxes.
        pyramid: Of the batch's maps.
        detections: Where it starts.
        number: Boxes of an image, by class score, that f is asked about; -1
            for all of them. The others go to the centres of their priors.
            Their log-densities are those of the energy NMS, or else NaN.
        check_last: See ``EnergyModel.refine``.
    """
    chosen = [_best_rows(each, number) for each in detections]
    moved = [each[rows] for each, rows in zip(detections, chosen)]
    boxes = box_table(moved)
    prior = prior_of(energy_model.density, moved)
    boxes = replace(boxes, corners=prior.centres)
    if math.isinf(energy_model.density.temperature):  # f has no say
        ends = prior.centres
        values = torch.full_like(prior.std, torch.nan)
    else:
        refined = energy_model.refine(pyramid, boxes, prior, check_last)
        ends, values = refined.corners, refined.logdensity
    results = []
    for detection, rows, (corners, logdensity) in zip(
        detections, chosen, boxes.split(ends, values)
    ):
        start = get_box_tensor(detection.bboxes)
        known = detection.get('logdensities')
        if known is None:
            known = logdensity.new_full((len(detection),), torch.nan)
        results.append(
            _with_fields(
                detection,
                bboxes=get_box_tensor(
                    detection.get('prior_bboxes', start)
                ).index_copy(0, rows, corners),
                logdensities=known.index_copy(0, rows, logdensity),
                initial_bboxes=start,
            )
        )
    return results


@dataclass(frozen=True)
class Judged:
    """What the densities of sides say of the placed boxes of a batch.

    Attributes:
        boxes: R boxes.
        prior: Of these boxes.
        rows: Those that f was asked about.
        logdensities: (R,) on their density, where f was looked at; NaN where
            it was not asked.
        sides: Of all R boxes.
        image_sizes: Height and width of each image, if boxes end there.
    """

    boxes: Boxes
    prior: BoxPrior
    rows: Tensor
    logdensities: Tensor
    sides: SideDensities
    image_sizes: Sequence[tuple[int, int]] | None

    def qualities(self) -> list[Tensor]:
        """Expected qualities (K,) of the boxes of each image."""
        quality = self.sides.expected_quality()
        return [each for (each,) in self.boxes.split(quality)]


def judge(
    energy_model: EnergyModel,
    pyramid: FeaturePyramid,
    detections: InstanceList,
    number: int,
) -> Judged:
    """Look at the densities of the sides of placed boxes.

    Args:
        energy_model: What is asked about boxes.
        pyramid: Of the batch's maps.
        detections: Placed boxes.
        number: Boxes of an image, by class score, for which f is asked; -1
            for all of them. The prior alone judges the others, and all of
            them where f has no say.
    """
    if math.isinf(energy_model.density.temperature):
        number = 0
    boxes = box_table(detections)
    prior = prior_of(energy_model.density, detections)
    starts = accumulate([0, *boxes.counts])
    rows = torch.cat(
        [
            _best_rows(each, number) + start
            for each, start in zip(detections, starts)
        ]
    )
    known = energy_model.side_derivatives(
        pyramid, boxes.rows(rows), prior.rows(rows)
    ).spread(rows, len(boxes.labels))
    density = energy_model.density
    logdensity = density.of_corners(lambda _: known.logdensity[:, None], prior)
    return Judged(
        boxes,
        prior,
        rows,
        logdensity(boxes.corners[:, None])[:, 0],
        side_densities(boxes.corners, known, density, prior),
        pyramid.image_sizes,
    )


def has_medians(density: BoxDensity) -> bool:
    """Whether sides have medians beside their prior's centres."""
    return not math.isinf(density.temperature + density.side_std)


def to_medians(energy_model: EnergyModel, judged: Judged) -> Judged:
    """Put each side of a box at the median of its density.

    Args:
        energy_model: Says which boxes may move.
        judged: Placed boxes. Those that f was not asked about stay.

    Returns:
        The boxes there, and what the same densities say of them; log-densities
        are still of where they came from.
    """
    boxes, centres = judged.boxes, judged.prior.centres
    settled = judged.sides.at_medians()
    corners = sides_to_boxes(settled.placed, centres)
    if judged.image_sizes is not None:
        corners = clip_boxes(corners, boxes.image_index, judged.image_sizes)
    asked = torch.zeros_like(boxes.labels, dtype=torch.bool)
    moves = asked.index_fill(0, judged.rows, True)
    for each in (boxes.corners, corners):
        moves = moves & energy_model.is_refinable(each)
    moves = (moves & corners.isfinite().all(1))[:, None]
    corners = torch.where(moves, corners, boxes.corners)
    sides = replace(
        judged.sides,
        placed=boxes_to_sides(corners, centres),
        logprob_placed=torch.where(
            moves, settled.logprob_placed, judged.sides.logprob_placed
        ),
    )
    boxes = replace(boxes, corners=corners)
    return replace(judged, boxes=boxes, sides=sides)


def rank(
    detections: InstanceList, judged: Judged | None, density: BoxDensity
) -> InstanceList:
    """Scores with the clusters and the expected quality of the boxes in them.

    Args:
        detections: Placed boxes.
        judged: These boxes; None if the quality has no say.
        density: Says what has a say.
    """
    qualities: Sequence[Tensor | None] = (
        judged.qualities() if judged else [None] * len(detections)
    )
    results = []
    for detection, quality in zip(detections, qualities):
        probs = density.object_probs(
            detection.scores, detection.get('cluster_support')
        )
        fields = dict(class_scores=detection.scores, object_probs=probs)
        scores = probs
        if quality is not None:
            scores = probs * quality**density.quality_power
            fields['qualities'] = quality
        order = scores.argsort(descending=True, stable=True)
        results.append(_with_fields(detection, scores=scores, **fields)[order])
    return results


def describe(
    energy_model: EnergyModel,
    pyramid: FeaturePyramid,
    detections: InstanceList,
    judged: Judged,
) -> InstanceList:
    """How sure boxes are, see ``EnergyModel.uncertainty``.

    Args:
        energy_model: What is asked about boxes.
        pyramid: Of the batch's maps.
        detections: Placed boxes.
        judged: These boxes. The prior alone describes those that f was not
            asked about; without a prior they get NaN.
    """
    known = energy_model.uncertainty_of(
        judged.sides, judged.boxes, judged.prior
    )
    if math.isinf(energy_model.density.side_std):  # nor is there a prior
        asked = torch.zeros_like(judged.boxes.labels, dtype=torch.bool)
        known = known.masked(asked.index_fill(0, judged.rows, True))
    std, logprob = known.std, known.logprob
    if energy_model.uncertainty_estimator is not None:
        rows = judged.rows
        looked_at = energy_model.uncertainty(
            pyramid, judged.boxes.rows(rows), judged.prior.rows(rows)
        )
        std = std.index_copy(0, rows, looked_at.std)
        logprob = logprob.index_copy(0, rows, looked_at.logprob)
    return [
        _with_fields(detection, box_std=std, box_logprobs=logprob)
        for detection, (std, logprob) in zip(
            detections, judged.boxes.split(std, logprob)
        )
    ]


def to_original_frame(instances: InstanceData, meta: dict) -> InstanceData:
    """Bring boxes from network-input to original-image pixels."""
    scale = meta['scale_factor']
    return _with_fields(
        instances,
        **{
            name: instances[name] / instances[name].new_tensor(scale).repeat(2)
            for name in PIXEL_FIELDS
            if name in instances
        },
    )


def energy_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    logdensity: Tensor,
    iou_threshold: float,
    max_per_img: int,
) -> tuple[Tensor, Tensor]:
    """Suppress duplicates of the box with the largest log-density.

    Within a class, boxes are visited from the largest log-density down; a kept
    box suppresses those it overlaps by more than ``iou_threshold`` and takes
    the largest class score of its cluster, itself included.

    Args:
        boxes: (R, 4) corners of one image.
        scores: (R,) class scores.
        labels: (R,) classes.
        logdensity: (R,) log-densities.
        iou_threshold: IoU above which boxes of a class are duplicates.
        max_per_img: Boxes to return at most; a negative number for all.

    Returns:
        Indices (K,) of the kept boxes, by falling cluster score, and the
        cluster scores (K,).

    Source: "Acquisition of Localization Confidence for Accurate Object
    Detection", ECCV 2018, arXiv 1807.11590, algorithm 1.
    """
    if boxes.numel() == 0:
        return labels.new_zeros(0), scores
    order = logdensity.nan_to_num(nan=-torch.inf)
    _, keep = batched_nms(
        boxes, order, labels, dict(type='nms', iou_threshold=iou_threshold)
    )
    # mmcv returns the kept boxes by falling log-density, so the first one that
    # overlaps a box is the one that suppressed it.
    joined = (bbox_overlaps(boxes[keep], boxes) > iou_threshold) & (
        labels[keep][:, None] == labels[None]
    )
    joined[torch.arange(len(keep), device=keep.device), keep] = True
    owner = joined.to(torch.uint8).argmax(0)
    # A kept box is its own cluster's, whatever it overlaps after rounding.
    owner[keep] = torch.arange(len(keep), device=keep.device)
    members = torch.where(joined.any(0), scores, -torch.inf)
    cluster_scores = torch.full_like(scores[keep], -torch.inf).scatter_reduce(
        0, owner, members, 'amax'
    )
    cluster_scores, rank = cluster_scores.sort(descending=True, stable=True)
    if max_per_img >= 0:
        cluster_scores, rank = cluster_scores[:max_per_img], rank[:max_per_img]
    return keep[rank], cluster_scores


def after_nms(candidates: InstanceData, test_cfg: ConfigType) -> InstanceData:
    """The detector's own result: its NMS of the candidates."""
    candidates = _copied(candidates)
    nms_cfg = require_plain_nms(test_cfg)
    if len(candidates) == 0:
        return candidates
    _, keep = batched_nms(
        candidates.bboxes, candidates.scores, candidates.labels, nms_cfg
    )
    limit = test_cfg.get('max_per_img', -1)
    return candidates[keep if limit < 0 else keep[:limit]]


def _copied(instances: InstanceData) -> InstanceData:
    return InstanceData(
        bboxes=get_box_tensor(instances.bboxes),
        scores=instances.scores,
        labels=instances.labels,
    )


def best_candidates(candidates: InstanceData, number: int) -> InstanceData:
    """Those of the largest class scores; all of them for -1."""
    if 0 <= number < len(candidates):
        return candidates[_best_rows(candidates, number)]
    return candidates


def _best_rows(instances: InstanceData, number: int) -> Tensor:
    """Rows of the largest class scores; all of them for -1."""
    count = len(instances)
    number = count if number < 0 else min(number, count)
    return instances.scores.topk(number).indices


def box_table(detections: InstanceList) -> Boxes:
    """All boxes of a batch in one table."""
    return Boxes.from_images(
        [get_box_tensor(d.bboxes) for d in detections],
        [d.labels for d in detections],
    )


def prior_of(density: BoxDensity, detections: InstanceList) -> BoxPrior:
    """What the detector alone says of the boxes of a batch.

    Centres are the means of clusters after a vote, and else the boxes before
    the ascent. Scores are those of the classes.
    """
    centres = _first_field(
        detections, 'prior_bboxes', 'initial_bboxes', 'bboxes'
    )
    scores = _first_field(detections, 'class_scores', 'scores')
    return density.prior(
        torch.cat([get_box_tensor(each) for each in centres]),
        torch.cat(scores),
    )


def _first_field(detections: InstanceList, *names: str) -> list:
    """Of each image, the first field that there is."""
    return [d[next(n for n in names if n in d)] for d in detections]


def _with_fields(instances: InstanceData, **fields: Tensor) -> InstanceData:
    return InstanceData(
        metainfo=instances.metainfo, **{**dict(instances.items()), **fields}
    )
