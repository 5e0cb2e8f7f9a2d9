"""Between mmdet's samples and the energy model, whatever the detector.

Training: ground truth of the samples -> the refiner's loss. Test: candidates
-> log-densities -> NMS ordered by them -> gradient ascent -> original frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmcv.ops import batched_nms
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import ConfigType, InstanceList
from mmengine.structures import InstanceData
from torch import Tensor

from ..ops import FeatureSurface
from .boxes import Boxes
from .energy_nms import competing, energy_nms
from .refiner import EnergyRefiner

# Fields (K, 4) of results whose columns are along x, y, x, y, in pixels.
PIXEL_FIELDS = ('bboxes', 'initial_bboxes', 'box_std')


@dataclass(frozen=True)
class Refinement:
    """Which stages run at test time.

    Attributes:
        energy_nms: Order NMS by log-density rather than by class score.
        ascent: Move the final boxes uphill.
        nms_pre: Candidates (box and class above the score threshold) of an
            image that enter the energy-ordered NMS at most, by class score;
            -1 for all. It bounds time and memory where a detector is unsure of
            everything.
        uncertainty: Tell how sure the final boxes are: standard deviations of
            their sides and normalised log-densities.
        uncertainty_per_img: Boxes of an image for which to tell it at most,
            by class score; -1 for all. The others get NaN. With the default
            of samples it takes longer than the ascent.
        keep_plain: Also give what the detector finds by itself, as
            ``plain_instances``, for a metric to compare with.
    """

    energy_nms: bool = True
    ascent: bool = True
    nms_pre: int = 1000
    uncertainty: bool = False
    uncertainty_per_img: int = 30
    keep_plain: bool = False

    @property
    def is_on(self) -> bool:
        """Whether any stage runs."""
        return self.energy_nms or self.ascent or self.uncertainty


def build_refiner(
    refiner: ConfigType,
    num_classes: int,
    out_channels: int,
    featmap_strides: Sequence[int],
    finest_scale: int,
) -> EnergyRefiner:
    """Build a refiner, what its config leaves out being the detector's.

    Args:
        refiner: Config of an ``EnergyRefiner``; ``head`` and
            ``roi_extractor`` may be partial or missing.
        num_classes: Classes of the detector.
        out_channels: Channels of each level.
        featmap_strides: Network-input pixels per cell of each level.
        finest_scale: As in ``PreciseRoIExtractor``.

    Raises:
        ValueError: If the config names another number of classes.
    """
    extractor = dict(
        type='PreciseRoIExtractor',
        output_size=7,
        out_channels=out_channels,
        featmap_strides=featmap_strides,
        finest_scale=finest_scale,
    )
    extractor.update(refiner.get('roi_extractor', {}))
    head = dict(
        type='EnergyHead',
        num_classes=num_classes,
        in_channels=extractor['out_channels'],
        roi_feat_size=extractor['output_size'],
    )
    head.update(refiner.get('head', {}))
    built = MODELS.build(dict(refiner, head=head, roi_extractor=extractor))
    if built.head.num_classes != num_classes:
        raise ValueError(
            f'the box head has num_classes={num_classes} and the energy head '
            f'{built.head.num_classes}; set refiner.head.num_classes to the '
            'same number, or leave it out'
        )
    return built


# ------------------------------------------------------------------ training


def energy_loss(
    refiner: EnergyRefiner,
    features: Sequence[Tensor],
    batch_data_samples: SampleList,
) -> dict[str, Tensor]:
    """Loss of the energy model on the samples' ground truth.

    Boxes marked as crowd or ignored are left out: they do not fit one object.
    """
    instances, _, metas = unpack_gt_instances(batch_data_samples)
    return refiner.loss(
        features,
        [_corners(i) for i in instances],
        [i.labels for i in instances],
        image_sizes(metas),
    )


# ---------------------------------------------------------------------- test


def refine_detections(
    refiner: EnergyRefiner,
    stages: Refinement,
    features: Sequence[Tensor],
    detections: InstanceList,
    metas: Sequence[dict],
    test_cfg: ConfigType | None = None,
    rescale: bool = False,
) -> InstanceList:
    """The stages that follow a detector's candidates.

    Args:
        refiner: The energy model.
        stages: Which stages run.
        features: Maps (N, C, H_l, W_l) of each level.
        detections: For each image, in network-input pixels, ``bboxes`` (K, 4),
            ``scores`` (K,) and ``labels`` (K,). With the energy NMS on, all
            candidates above the score threshold, before any NMS.
        metas: Meta information of the images.
        test_cfg: With ``nms`` and, perhaps, ``max_per_img``; needed by the
            energy NMS.
        rescale: Give boxes in the original image's frame.

    Returns:
        New instances with the fields of ``detections`` and ``logdensities``
        (K,), after an ascent also ``initial_bboxes`` (K, 4), where it
        started; with ``uncertainty`` also ``box_std`` (K, 4), standard
        deviations of x1, y1, x2, y2 in the frame of the boxes, and
        ``box_logprobs`` (K,). Scores are class scores. With ``keep_plain``
        the meta information of the instances has ``plain_instances``.

    Raises:
        ValueError: If boxes are not of four corners, or the energy NMS is to
            replace an NMS of another kind.
    """
    sizes = image_sizes(metas)
    surface = refiner.surface(features, sizes)
    # All stages work in network-input pixels: rescaling comes last.
    plain = None
    if stages.keep_plain:
        plain = [
            _plain(d, test_cfg if stages.energy_nms else None)
            for d in detections
        ]
    if stages.energy_nms:
        detections = order_by_energy(
            refiner,
            surface,
            detections,
            test_cfg,
            stages.nms_pre,
            every_logdensity=not stages.ascent,
        )
    if stages.ascent:
        detections = ascend(refiner, surface, detections, sizes)
    if stages.uncertainty:
        detections = add_uncertainty(
            refiner, surface, detections, stages.uncertainty_per_img
        )
    # A stage that adds to the final boxes belongs here; what it gives in
    # pixels has its name in PIXEL_FIELDS.
    if plain is not None:
        for detection, without in zip(detections, plain):
            # Not a field: there may be more or fewer of them.
            detection.set_metainfo(dict(plain_instances=without))
    if rescale:
        detections = [
            to_original_frame(d, meta)
            for d, meta in zip(detections, metas, strict=True)
        ]
    return detections


def order_by_energy(
    refiner: EnergyRefiner,
    surface: FeatureSurface,
    candidates: InstanceList,
    test_cfg: ConfigType,
    nms_pre: int,
    every_logdensity: bool,
) -> InstanceList:
    """NMS ordered by log-density, see :func:`energy_nms`.

    Args:
        refiner: The energy model.
        surface: Of the batch's features.
        candidates: Boxes, scores and labels of each image.
        test_cfg: With ``nms`` and ``max_per_img``.
        nms_pre: Candidates of an image at most.
        every_logdensity: Evaluate also the boxes that meet no other of their
            class, whose log-density decides nothing; else they have zero.
    """
    nms_cfg = require_plain_nms(test_cfg)
    candidates = [_best(c, nms_pre) for c in candidates]
    boxes = _table(candidates)
    if every_logdensity:
        logdensity = refiner.logdensity(surface, boxes)
    else:
        rows = torch.cat(
            [
                competing(corners, labels, nms_cfg.iou_threshold)
                for corners, labels in boxes.split(boxes.corners, boxes.labels)
            ]
        ).nonzero()[:, 0]
        # The NMS reads back how many boxes it keeps, so this may do too.
        logdensity = torch.zeros_like(boxes.corners[:, 0]).index_copy(
            0, rows, refiner.logdensity(surface, boxes.rows(rows))
        )
    pieces = boxes.split(boxes.corners, logdensity)
    results = []
    for candidate, (corners, values) in zip(candidates, pieces):
        keep, scores = energy_nms(
            corners,
            candidate.scores,
            candidate.labels,
            values,
            nms_cfg.iou_threshold,
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


def ascend(
    refiner: EnergyRefiner,
    surface: FeatureSurface,
    detections: InstanceList,
    sizes: Sequence[tuple[int, int]],
) -> InstanceList:
    """Gradient ascent from each box, see ``EnergyRefiner.refine``."""
    boxes = _table(detections)
    refined = refiner.refine(surface, boxes, sizes)
    pieces = boxes.split(refined.corners, refined.logdensity, boxes.corners)
    return [
        _with_fields(
            detection,
            bboxes=corners,
            logdensities=logdensity,
            initial_bboxes=start,
        )
        for detection, (corners, logdensity, start) in zip(detections, pieces)
    ]


def add_uncertainty(
    refiner: EnergyRefiner,
    surface: FeatureSurface,
    detections: InstanceList,
    number: int,
) -> InstanceList:
    """Standard deviations of the sides, see ``EnergyRefiner.uncertainty``.

    Args:
        refiner: The energy model.
        surface: Of the batch's features.
        detections: Final boxes in network-input pixels.
        number: Boxes of an image, by class score, that are looked at; -1 for
            all of them.
    """
    rows = [
        d.scores.topk(len(d) if number < 0 else min(number, len(d))).indices
        for d in detections
    ]
    boxes = Boxes.from_images(
        [_corners(d)[r] for d, r in zip(detections, rows)],
        [d.labels[r] for d, r in zip(detections, rows)],
    )
    found = refiner.uncertainty(surface, boxes)
    results = []
    for detection, row, (std, logprob) in zip(
        detections, rows, boxes.split(found.std, found.logprob)
    ):
        results.append(
            _with_fields(
                detection,
                box_std=std.new_full(
                    (len(detection), 4), torch.nan
                ).index_copy(0, row, std),
                box_logprobs=std.new_full(
                    (len(detection),), torch.nan
                ).index_copy(0, row, logprob),
            )
        )
    return results


def to_original_frame(
    detections: InstanceData, meta: dict, names: Sequence[str] = PIXEL_FIELDS
) -> InstanceData:
    """Bring fields (K, 4) from network-input to original-image pixels.

    ``plain_instances`` in the detections' own meta information go with them.
    """
    present = [name for name in names if name in detections]
    scale = meta['scale_factor']
    result = _with_fields(
        detections,
        **{
            name: detections[name]
            / detections[name].new_tensor(scale).repeat(2)
            for name in present
        },
    )
    plain = result.get('plain_instances')
    if plain is not None:
        result.set_metainfo(
            dict(plain_instances=to_original_frame(plain, meta))
        )
    return result


def others_to_original_frame(
    results: InstanceList, metas: Sequence[dict]
) -> InstanceList:
    """For results of a mask head, which brings ``bboxes`` there itself."""
    names = [name for name in PIXEL_FIELDS if name != 'bboxes']
    return [
        to_original_frame(result, meta, names)
        for result, meta in zip(results, metas, strict=True)
    ]


def require_plain_nms(test_cfg: ConfigType) -> ConfigType:
    """The config of the NMS that energies can order.

    Raises:
        ValueError: If it is none, or of another kind.
    """
    nms_cfg = (test_cfg or {}).get('nms') or {}
    if nms_cfg.get('type') != 'nms' or set(nms_cfg) != {
        'type',
        'iou_threshold',
    }:
        raise ValueError(
            'refinement.energy_nms needs a detector whose test_cfg has nms = '
            "dict(type='nms', iou_threshold=...), got "
            f'{dict(nms_cfg) or None}. Change it, or switch energy_nms off.'
        )
    return nms_cfg


def class_candidates(raw: InstanceData, score_thr: float) -> InstanceData:
    """Pairs of box and class above the threshold, from a RoI's box head.

    Args:
        raw: ``bboxes`` (K, 4) or (K, 4 * num_classes) and ``scores`` (K,
            num_classes + 1), the background's last.
        score_thr: Class score above which a pair counts.
    """
    class_scores = raw.scores[:, :-1]
    num_classes = class_scores.shape[1]
    boxes = get_box_tensor(raw.bboxes)
    boxes = boxes.view(len(boxes), boxes.shape[1] // 4, 4)
    boxes = boxes.expand(-1, num_classes, 4)
    index, labels = (class_scores > score_thr).nonzero(as_tuple=True)
    return InstanceData(
        bboxes=boxes[index, labels],
        scores=class_scores[index, labels],
        labels=labels,
    )


def image_sizes(metas: Sequence[dict]) -> list[tuple[int, int]]:
    """Height and width of each image inside its padding."""
    return [tuple(meta['img_shape'][:2]) for meta in metas]


def _plain(
    detections: InstanceData, test_cfg: ConfigType | None
) -> InstanceData:
    """The detector's own result: its NMS, where it has not run yet."""
    plain = InstanceData(
        bboxes=_corners(detections),
        scores=detections.scores,
        labels=detections.labels,
    )
    if test_cfg is None or len(plain) == 0:
        return plain
    _, keep = batched_nms(
        plain.bboxes, plain.scores, plain.labels, require_plain_nms(test_cfg)
    )
    limit = test_cfg.get('max_per_img', -1)
    return plain[keep if limit < 0 else keep[:limit]]


def _best(candidates: InstanceData, number: int) -> InstanceData:
    if 0 <= number < len(candidates):
        return candidates[candidates.scores.topk(number).indices]
    return candidates


def _table(detections: InstanceList) -> Boxes:
    return Boxes.from_images(
        [_corners(d) for d in detections], [d.labels for d in detections]
    )


def _corners(instances: InstanceData) -> Tensor:
    corners = get_box_tensor(instances.bboxes)
    if corners.dim() != 2 or corners.shape[1] != 4:
        raise ValueError(
            'the energy model knows boxes (K, 4) of corners x1, y1, x2, y2 '
            f'and got bboxes of shape {tuple(corners.shape)}; rotated boxes '
            'are not supported'
        )
    return corners


def _with_fields(instances: InstanceData, **fields: Tensor) -> InstanceData:
    return InstanceData(
        metainfo=instances.metainfo, **{**dict(instances.items()), **fields}
    )
