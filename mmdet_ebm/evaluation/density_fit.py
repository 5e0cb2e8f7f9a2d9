r"""Fit a :class:`~mmdet_ebm.core.BoxDensity` to held-out images.

For a detection that matches an annotation, the annotation's box is compared
with S boxes of a wide noise q around the detector's. The numbers are those
under which it stands out most,

.. math:: -\log \frac{p(y_0) / q(y_0)}{\sum_{m=0}^S p(y_m) / q(y_m)} ,

noise contrastive estimation with the true box y_0 among the others. (The
likelihood with a normaliser from the S samples alone looks too good where the
density is sharp: samples miss its peak.)

The likelihood gives the shape. How far f is trusted then depends on what the
placed boxes are worth, see :mod:`.placed_quality`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import InstanceList
from scipy.optimize import minimize
from torch import Tensor

from ..core import (
    BoxDensity,
    log_odds,
    log_size,
    noise_logprob,
    quasi_random_noise,
    student_logprob,
)
from ..models import EnergyDetector, EnergyModel
from ..models.detectors.refinement import (
    after_nms,
    best_candidates,
    box_table,
    prior_of,
    with_clusters,
)
from ..ops import FeaturePyramid, boxes_to_sides
from .calibration import match_to_truth

# Widths of q along a side: from the sharpest f to the largest error of a
# match. Each side has its own, since one may be off while others are right.
_SIGMAS = (0.01, 0.03, 0.08, 0.2)
_SAMPLES = 256
# Box evaluations at once.
_ROWS = 4096 // _SAMPLES
# Matches that are enough for a few numbers; the rest of a large split is not
# looked at.
MAX_MATCHES = 1500
# Of the mean loss, relative: less is below what the matches can tell.
_TOLERANCE = 1e-6
# Where log T, log s, log of the degrees of freedom and the slopes for score
# and size are looked for, and where the search starts.
_BOUNDS = [(-1.5, 9.0), (-6.0, -1.0), (0.0, 4.0), (-1.0, 1.0), (-1.5, 0.5)]
_START = (0.5, -3.0, 0.7, 0.0, 0.0)


@dataclass(frozen=True)
class MatchedDensities:
    """f around K matched detections, in sides relative to the detector's box.

    Attributes:
        truth: (K, 4) the annotations.
        at_truth: (K,) f there.
        offsets: (S, 4) samples of q, the same for all.
        logdensity: (K, S) f there.
        voted: (K, 4) the means of the clusters.
        log_odds: (K,) of the class scores.
        log_size: (K,) log of the boxes' sizes over 64 pixels.
    """

    truth: Tensor
    at_truth: Tensor
    offsets: Tensor
    logdensity: Tensor
    voted: Tensor
    log_odds: Tensor
    log_size: Tensor


def match_densities(
    model: EnergyDetector, batches: Iterable[dict]
) -> MatchedDensities:
    """Look at f around the detections of held-out images.

    Args:
        model: An ``EnergyDetector`` in eval mode.
        batches: Of a test pipeline's loader; annotations are in
            original-image pixels. Reading ends after ``MAX_MATCHES`` matches.

    Raises:
        ValueError: If no detection matches an annotation, or f is not finite
            around one.
    """
    offsets = side_noise(_SAMPLES)
    columns: list[list[Tensor]] = [[] for _ in range(6)]
    count = 0
    with torch.no_grad():
        for batch in batches:
            found, pyramid, samples = detect_with_clusters(model, batch)
            rows, truth = matched_rows(found, samples)
            parts = _look_around(
                model.energy_model, pyramid, found, rows, truth, offsets
            )
            for column, part in zip(columns, parts):
                column.append(part.double().cpu())
            count += len(rows)
            if count >= MAX_MATCHES:
                break
    if count == 0:
        raise ValueError(
            'no detection on the held-out images matches an annotation, so '
            'there is nothing to fit; is the detector trained, and are the '
            'images of the split annotated?'
        )
    truth, at_truth, f, voted, log_odds, log_size = map(torch.cat, columns)
    if not (at_truth.isfinite().all() and f.isfinite().all()):
        raise ValueError(
            'the energy model gives log-densities that are NaN or infinite '
            'on the held-out images; has its training diverged?'
        )
    return MatchedDensities(
        truth, at_truth, offsets.double(), f, voted, log_odds, log_size
    )


def _look_around(
    energy_model: EnergyModel,
    pyramid: FeaturePyramid,
    instances: InstanceList,
    rows: Tensor,
    truth: Tensor,
    offsets: Tensor,
) -> tuple[Tensor, ...]:
    """The columns of ``MatchedDensities`` for some rows of a batch."""
    boxes = box_table(instances).rows(rows)
    voted = prior_of(BoxDensity(), instances).centres[rows]
    scores = torch.cat([each.scores for each in instances])[rows]
    f = [torch.zeros(0, len(offsets) + 1).to(scores)]
    for part, target in zip(boxes.chunks(_ROWS), truth.split(_ROWS)):
        size = part.corners[:, 2:] - part.corners[:, :2]
        around = part.corners[:, None] + offsets.to(target) * size.repeat(
            1, 2
        ).unsqueeze(1)
        logdensity = energy_model.corner_logdensity_fn(pyramid, part)
        f.append(logdensity(torch.cat([target[:, None], around], 1)))
    values = torch.cat(f)
    return (
        boxes_to_sides(truth, boxes.corners),
        values[:, 0],
        values[:, 1:],
        boxes_to_sides(voted, boxes.corners),
        log_odds(scores),
        log_size(boxes.corners),
    )


def side_noise(num_samples: int) -> Tensor:
    """(S, 4) samples of q, whose sides are independent."""
    sigmas = torch.tensor(_SIGMAS)[:, None]
    sides = [
        quasi_random_noise(num_samples, sigmas, 1, seed=side)
        for side in range(4)
    ]
    order = torch.Generator().manual_seed(0)
    return torch.cat(
        [side[torch.randperm(num_samples, generator=order)] for side in sides],
        1,
    )


def side_noise_logprob(offsets: Tensor) -> Tensor:
    """log q of offsets (..., 4)."""
    sigmas = torch.tensor(_SIGMAS).to(offsets)[:, None]
    return noise_logprob(offsets[..., None], sigmas).sum(-1)


def detect_with_clusters(
    model: EnergyDetector, batch: dict
) -> tuple[InstanceList, FeaturePyramid, SampleList]:
    """The detector's own boxes, with what their clusters say beside them.

    Args:
        model: In eval mode.
        batch: Of a test pipeline's loader.

    Returns:
        Detections, with ``prior_bboxes``, the means, and ``cluster_support``
        if the detector has class-wise NMS; the maps of the energy model; the
        samples.
    """
    data = model.data_preprocessor(batch, False)
    samples = data['data_samples']
    source = model.box_source
    found, pyramid, _ = model.find(
        data['inputs'], samples, source.can_be_ordered
    )
    if source.can_be_ordered:
        number = model.refinement.nms_pre
        candidates = [best_candidates(each, number) for each in found]
        detections = [after_nms(each, source.test_cfg) for each in found]
        found = with_clusters(detections, candidates, source.test_cfg, 1.0)
    return found, pyramid, samples


def matched_rows(
    instances: InstanceList, samples: SampleList
) -> tuple[Tensor, Tensor]:
    """Rows of a batch's table that match, and their annotations (n, 4)."""
    starts = accumulate([0, *map(len, instances)])
    pairs = match_batch(instances, samples)
    return (
        torch.cat([rows + start for (rows, _), start in zip(pairs, starts)]),
        torch.cat([truth for _, truth in pairs]),
    )


def match_batch(
    instances: InstanceList,
    samples: SampleList,
    min_iou: float = 0.5,
    score_thr: float = 0.0,
) -> list[tuple[Tensor, Tensor]]:
    """Pair detections with annotations, see :func:`match_to_truth`.

    Args:
        instances: Detections of each image, in network-input pixels.
        samples: With the annotations of a test pipeline, which are in
            original-image pixels.
        min_iou: Least IoU of a pair.
        score_thr: Detections of a lower class score are left out.

    Returns:
        For each image the rows of matched detections, and their annotations
        (n, 4) in network-input pixels.

    Raises:
        ValueError: If the samples have no annotations.
    """
    pairs = []
    for found, sample in zip(instances, samples):
        boxes = get_box_tensor(found.bboxes)
        scale = boxes.new_tensor(
            sample.metainfo.get('scale_factor', (1.0, 1.0))
        ).repeat(2)
        truth = sample.gt_instances.to(boxes.device)
        if 'bboxes' not in truth:
            raise ValueError(
                'images to fit on need their annotations, and the pipeline of '
                "their split loads none: add dict(type='LoadAnnotations', "
                'with_bbox=True) to it, after Resize'
            )
        wanted = get_box_tensor(truth.bboxes) * scale
        overlaps = bbox_overlaps(boxes, wanted) * (
            found.labels[:, None] == truth.labels
        )
        overlaps[found.scores < score_thr] = 0
        rows, columns = (
            torch.from_numpy(index).to(boxes.device)
            for index in match_to_truth(
                overlaps.cpu().numpy(), found.scores.cpu().numpy(), min_iou
            )
        )
        pairs.append((rows, wanted[columns]))
    return pairs


def fit_shape(
    matched: MatchedDensities, vote_share: float
) -> dict[str, float]:
    """The numbers of least mean :func:`contrastive_loss`.

    Args:
        matched: From :func:`match_densities`.
        vote_share: Where the prior's centre lies.

    Returns:
        ``temperature``, ``side_std``, ``dof``, ``score_slope`` and
        ``size_slope``; ``gain``, how much smaller the loss is than that of
        the best prior without f.
    """
    numbers, loss = _minimise(matched, vote_share, _START, _BOUNDS)
    without_f = _BOUNDS[0][1]
    _, alone = _minimise(
        matched,
        vote_share,
        (without_f, *numbers[1:]),
        [(without_f, without_f), *_BOUNDS[1:]],
    )
    log_temperature, log_std, log_dof, score_slope, size_slope = numbers
    return dict(
        temperature=math.exp(log_temperature),
        side_std=math.exp(log_std),
        dof=math.exp(log_dof),
        score_slope=score_slope,
        size_slope=size_slope,
        gain=alone - loss,
    )


def contrastive_loss(
    matched: MatchedDensities, numbers: Tensor, vote_share: float
) -> Tensor:
    """(K,) of the annotations among the samples, under the density.

    Args:
        matched: From :func:`match_densities`.
        numbers: (5,) log T, log s, log of the degrees of freedom, slopes for
            score and size.
        vote_share: Where the prior's centre lies.
    """
    temperature, std, dof = numbers[:3].exp()
    std = (
        std
        * (numbers[3] * matched.log_odds + numbers[4] * matched.log_size).exp()
    )
    centre = vote_share * matched.voted

    def logprior(sides: Tensor) -> Tensor:
        z = (sides - centre[:, None]) / std[:, None, None]
        return student_logprob(z, dof)

    at_truth = (
        matched.at_truth / temperature
        + logprior(matched.truth[:, None])[:, 0]
        - side_noise_logprob(matched.truth)
    )
    others = (
        matched.logdensity / temperature
        + logprior(matched.offsets[None])
        - side_noise_logprob(matched.offsets)
    )
    all_of_them = torch.cat([at_truth[:, None], others], 1)
    return all_of_them.logsumexp(1) - at_truth


def _minimise(
    matched: MatchedDensities,
    vote_share: float,
    start: Sequence[float],
    bounds: Sequence[tuple[float, float]],
) -> tuple[list[float], float]:
    def mean_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        numbers = torch.from_numpy(values).requires_grad_()
        mean = contrastive_loss(matched, numbers, vote_share).mean()
        (gradient,) = torch.autograd.grad(mean, numbers)
        return mean.item(), gradient.numpy()

    found = minimize(
        mean_and_gradient,
        np.array(start, float),
        jac=True,
        method='L-BFGS-B',
        bounds=bounds,
        options=dict(ftol=_TOLERANCE),
    )
    return found.x.tolist(), float(found.fun)
