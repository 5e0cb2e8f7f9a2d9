r"""Fit a :class:`~mmdet_ebm.core.BoxDensity` to held-out images.

For a detection that matches an annotation, t is the annotation's box in the
relative coordinates of the detector's box. With S samples t_m of a wide noise
q, the density's normaliser and so the likelihood of t are known for any
temperature T and prior from one set of values of f:

.. math:: \log p(t) = f(t) / T + \log \pi(t) - \log \tfrac{1}{S} \sum_m
          \exp(f(t_m) / T + \log \pi(t_m) - \log q(t_m)) .
"""

import contextlib
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmdet.utils import InstanceList
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from scipy.optimize import minimize
from torch import Tensor

from ..core import noise_logprob, quasi_random_noise
from ..core.box_density import with_tail
from ..models import EnergyDetector
from ..models.detectors.refinement import (
    box_table,
    prior_table,
    to_original_frame,
)
from ..ops import Boxes, boxes_to_relative
from .bootstrap import MatchedDetections
from .calibration import match_to_truth

# Widths of q: from the sharpest f to the largest error of a match.
_SIGMAS = (0.02, 0.05, 0.1, 0.2)
_SAMPLES = 256
# Matches that are enough for five numbers; the rest of a large split is not
# looked at.
MAX_MATCHES = 4000
# Exponents of the expected quality that are tried.
POWERS = (0.0, 0.25, 0.5, 1.0)
# Where the numbers are looked for, see negative_log_likelihood.
_LOG_TEMPERATURE = (-1.5, 9.0)
_BOUNDS = [(-6.0, -0.5), (-6.0, -0.5), (-5.0, 4.0), (-2.0, 2.5)]


@dataclass(frozen=True)
class MatchedDensities:
    """f around K matched detections, relative to the detector's boxes.

    Attributes:
        truth: (K, 4) the annotations.
        at_truth: (K,) f there.
        offsets: (S, 4) samples of q, the same for all.
        logdensity: (K, S) f there.
        score: (K,) class scores.
    """

    truth: Tensor
    at_truth: Tensor
    offsets: Tensor
    logdensity: Tensor
    score: Tensor


def match_densities(
    model: EnergyDetector, batches: Iterable[dict]
) -> MatchedDensities:
    """Look at f around the detections of held-out images.

    Args:
        model: An ``EnergyDetector`` in eval mode.
        batches: Of a test pipeline's loader; annotations are in
            original-image pixels. Reading ends after ``MAX_MATCHES`` matches.

    Raises:
        ValueError: If no detection matches an annotation.
    """
    sigmas = torch.tensor(_SIGMAS)[:, None]
    offsets = quasi_random_noise(_SAMPLES, sigmas, 4)
    parts, count = [], 0
    # The detector's own boxes are matched.
    with torch.no_grad(), _stages(model, ascent=False):
        for batch in batches:
            data = model.data_preprocessor(batch, False)
            found = model.detect(data['inputs'], data['data_samples'])
            boxes, truth, score = _matched(
                found.instances, data['data_samples']
            )
            truth = boxes_to_relative(truth, boxes.corners)
            size = max(1, 4096 // _SAMPLES)
            for part, target, weight in zip(
                boxes.chunks(size), truth.split(size), score.split(size)
            ):
                points = torch.cat(
                    [
                        target[:, None],
                        offsets.to(target).expand(len(target), -1, -1),
                    ],
                    1,
                )
                f = model.energy_model.logdensity_fn(found.pyramid, part)
                values = f(points)
                parts.append((target, values[:, 0], values[:, 1:], weight))
            count += len(score)
            if count >= MAX_MATCHES:
                break
    truth, at_truth, logdensity, score = (
        torch.cat(column).double().cpu() for column in zip(*parts)
    )
    if len(truth) == 0:
        raise ValueError(
            'no detection on the held-out images matches an annotation, so '
            'there is nothing to fit; is the detector trained, and are the '
            'images of the split annotated?'
        )
    return MatchedDensities(
        truth, at_truth, offsets.double(), logdensity, score
    )


def _matched(
    instances: InstanceList, samples: SampleList
) -> tuple[Boxes, Tensor, Tensor]:
    """The prior's boxes of matched detections, their truth and scores."""
    pairs = match_batch(instances, samples)
    kept = [found[rows] for found, (rows, _) in zip(instances, pairs)]
    return (
        prior_table(kept),
        torch.cat([truth for _, truth in pairs]),
        torch.cat([found.scores for found in kept]),
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
    """
    pairs = []
    for found, sample in zip(instances, samples):
        boxes = get_box_tensor(found.bboxes)
        scale = boxes.new_tensor(
            sample.metainfo.get('scale_factor', (1.0, 1.0))
        ).repeat(2)
        truth = sample.gt_instances.to(boxes.device)
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


def negative_log_likelihood(
    matched: MatchedDensities, numbers: Tensor
) -> Tensor:
    """(K,) of the annotations, under the density.

    Args:
        matched: From :func:`match_densities`.
        numbers: (5,) unconstrained: log T, log s of the centre and of the
            size, logit of the tail's share, log of its factor less 1.
    """
    temperature, centre, size = numbers[:3].exp()
    std = torch.stack([centre, centre, size, size])
    share, factor = numbers[3].sigmoid(), 1 + numbers[4].exp()
    log_ratio = numbers[3] - 4 * factor.log()
    constant = (
        torch.log1p(-share) - std.log().sum() - 2 * math.log(2 * math.pi)
    )

    def logprior(t: Tensor) -> Tensor:
        narrow = -0.5 * (t / std).square().sum(-1)
        return with_tail(narrow, log_ratio, factor) + constant

    sigmas = torch.tensor(_SIGMAS).double()[:, None]
    logq = noise_logprob(matched.offsets, sigmas)
    weights = (
        matched.logdensity / temperature + logprior(matched.offsets) - logq
    )
    normaliser = weights.logsumexp(1) - math.log(weights.shape[1])
    at_truth = matched.at_truth / temperature + logprior(matched.truth)
    return normaliser - at_truth


def fit_density(matched: MatchedDensities) -> dict[str, float]:
    """The numbers of least mean negative log-likelihood.

    Returns:
        ``temperature``, ``centre_std``, ``size_std``, ``tail_share`` and
        ``tail_factor``; ``nll`` under them, and ``nll_prior`` of the best
        prior without f, for comparison.
    """
    numbers, nll = _minimise(matched, learn_temperature=True)
    _, alone = _minimise(matched, learn_temperature=False)
    return dict(
        temperature=math.exp(numbers[0]),
        centre_std=math.exp(numbers[1]),
        size_std=math.exp(numbers[2]),
        tail_share=1 / (1 + math.exp(-numbers[3])),
        tail_factor=1 + math.exp(numbers[4]),
        nll=nll,
        nll_prior=alone,
    )


@dataclass(frozen=True)
class PlacedAP:
    """AP of held-out images, fractions.

    Attributes:
        plain: Of the detector's boxes and scores.
        placed: Of placed boxes, by the exponent of the expected quality.
    """

    plain: float
    placed: dict[float, float]

    @property
    def best_power(self) -> float:
        """The smallest exponent within 0.05 points of the best AP."""
        enough = max(self.placed.values()) - 5e-4
        return min(p for p, ap in self.placed.items() if ap >= enough)


def evaluate_placed(
    model: EnergyDetector, batches: Iterable[dict]
) -> PlacedAP:
    """AP with and without refinement, for exponents of the expected quality.

    Args:
        model: In eval mode, with the density fitted.
        batches: Of a test pipeline's loader; annotations are in
            original-image pixels.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    results: dict[float | None, list[dict]] = {
        power: [] for power in (None, *POWERS)
    }
    with torch.no_grad(), _stages(model, ascent=True, rank=False):
        for batch in batches:
            data = model.data_preprocessor(batch, False)
            samples = data['data_samples']
            found = model.detect(data['inputs'], samples)
            boxes = box_table(found.instances)
            priors = prior_table(found.instances)
            quality = model.energy_model.expected_quality(
                found.pyramid, boxes, priors.corners
            )
            for instances, sample, (part,) in zip(
                found.instances, samples, boxes.split(quality)
            ):
                image = len(images)
                images.append(dict(id=image))
                annotations += _annotations(image, sample, len(annotations))
                instances = to_original_frame(instances, sample.metainfo)
                for power, rows in results.items():
                    rows += _results(image, instances, part, power)
    classes = {each['category_id'] for each in annotations}
    classes |= {row['category_id'] for row in results[None]}
    truth = COCO()
    truth.dataset = dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=c, name=str(c)) for c in sorted(classes)],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    ap = {
        power: MatchedDetections(truth, rows).average_precision()['AP']
        for power, rows in results.items()
    }
    return PlacedAP(ap.pop(None), ap)


def _annotations(image: int, sample: DetDataSample, first: int) -> list[dict]:
    rows = []
    for field, crowd in (('gt_instances', 0), ('ignored_instances', 1)):
        if field not in sample:
            continue
        truth = sample.get(field)
        for (x1, y1, x2, y2), label in zip(
            get_box_tensor(truth.bboxes).tolist(), truth.labels.tolist()
        ):
            width, height = x2 - x1, y2 - y1
            rows.append(
                dict(
                    id=first + len(rows) + 1,
                    image_id=image,
                    category_id=label,
                    bbox=[x1, y1, width, height],
                    area=width * height,
                    iscrowd=crowd,
                )
            )
    return rows


def _results(
    image: int, instances: InstanceData, quality: Tensor, power: float | None
) -> list[dict]:
    """The detections in COCO's form; the detector's own without a power."""
    if power is None:
        boxes, scores = instances.initial_bboxes, instances.scores
    else:
        boxes, scores = instances.bboxes, instances.scores * quality**power
    return [
        dict(
            image_id=image,
            category_id=label,
            bbox=[x1, y1, x2 - x1, y2 - y1],
            score=score,
        )
        for (x1, y1, x2, y2), score, label in zip(
            boxes.tolist(), scores.tolist(), instances.labels.tolist()
        )
    ]


@contextlib.contextmanager
def _stages(model: EnergyDetector, **changes: bool) -> Iterator[None]:
    """Other stages for a while, those of the published NMS left out."""
    usual = model.refinement
    model.refinement = replace(
        usual, **{'energy_nms': False, 'uncertainty': False, **changes}
    )
    try:
        yield
    finally:
        model.refinement = usual


def fit_model(model: EnergyDetector, batches: Iterable[dict]) -> str:
    """Fit a model's density and say what came out.

    First the likelihood of the annotations gives the temperature and the
    prior, then AP the exponent of the expected quality. If refinement lowers
    AP even so, the temperature becomes so large that boxes stay.

    Args:
        model: In eval mode; its density is changed in place.
        batches: Held-out images, read twice; see :func:`match_densities`.

    Returns:
        A line for the log.

    Raises:
        ValueError: If no detection matches an annotation.
    """
    density = model.energy_model.density
    numbers = fit_density(match_densities(model, batches))
    nll, alone = numbers.pop('nll'), numbers.pop('nll_prior')
    for name, value in numbers.items():
        setattr(density, name, value)
    ap = evaluate_placed(model, batches)
    density.quality_power = ap.best_power
    text = (
        f'Density fitted on held-out images: {density.extra_repr()}. '
        f'Negative log-likelihood {nll:.2f}, of the detector alone '
        f'{alone:.2f}. AP {100 * ap.plain:.1f} plain, '
        f'{100 * ap.placed[density.quality_power]:.1f} refined.'
    )
    if ap.placed[density.quality_power] < ap.plain:
        density.temperature = math.exp(_LOG_TEMPERATURE[1])
        density.quality_power = 0.0
        text += ' Refinement does not help here, so boxes will stay.'
    density.fitted = True
    return text


def _minimise(
    matched: MatchedDensities, learn_temperature: bool
) -> tuple[list[float], float]:
    def mean_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        numbers = torch.from_numpy(values).requires_grad_()
        mean = negative_log_likelihood(matched, numbers).mean()
        (gradient,) = torch.autograd.grad(mean, numbers)
        return float(mean), gradient.numpy()

    temperature = (
        _LOG_TEMPERATURE if learn_temperature else (_LOG_TEMPERATURE[1],) * 2
    )
    start = [0.5 if learn_temperature else temperature[0], -3.5, -3, 0, 1]
    found = minimize(
        mean_and_gradient,
        np.array(start, float),
        jac=True,
        method='L-BFGS-B',
        bounds=[temperature, *_BOUNDS],
    )
    return found.x.tolist(), float(found.fun)
