"""How kinds of detectors give their boxes, before and after their NMS.

A detector of a kind not listed here works through :class:`BoxSource`: its
final boxes are refined. To have them ordered by log-density as well, subclass
it and register the subclass in ``BOX_SOURCES``.
"""

import inspect
from collections.abc import Sequence

from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.dense_heads.paa_head import PAAHead
from mmdet.models.dense_heads.rtmdet_ins_head import RTMDetInsHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import ConfigType, InstanceList, OptConfigType
from mmengine.config import ConfigDict
from mmengine.registry import Registry
from mmengine.structures import InstanceData
from torch import Tensor, nn

BOX_SOURCES = Registry('box source', scope='mmdet')


@BOX_SOURCES.register_module()
class BoxSource:
    """Any detector: its final boxes, among which nothing is left to suppress.

    Args:
        detector: Built by mmdet; used, not owned.
    """

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector

    @classmethod
    def suits(cls, detector: nn.Module) -> bool:
        """Whether this class knows how the detector predicts."""
        return True

    @property
    def num_classes(self) -> int | None:
        """Classes of the box head, None where it does not say."""
        parent = getattr(self.detector, 'roi_head', self.detector)
        head = _last(getattr(parent, 'bbox_head', None))
        return getattr(head, 'num_classes', None)

    @property
    def levels(self) -> dict | None:
        """``in_channels``, ``featmap_strides`` and ``finest_scale`` of a RoI
        extractor, None without one."""
        head = getattr(self.detector, 'roi_head', None)
        extractor = _last(getattr(head, 'bbox_roi_extractor', None))
        if extractor is None:
            return None
        return dict(
            in_channels=extractor.out_channels,
            featmap_strides=tuple(extractor.featmap_strides),
            finest_scale=getattr(extractor, 'finest_scale', None),
        )

    @property
    def test_cfg(self) -> OptConfigType:
        """Settings with the ``nms`` that log-densities may order, if any."""
        return None

    @property
    def can_be_ordered(self) -> bool:
        """Whether there are candidates and a plain NMS behind them."""
        try:
            require_plain_nms(self.test_cfg)
        except ValueError:
            return False
        return True

    def detections(self, inputs: Tensor, samples: SampleList) -> InstanceList:
        """The detector's results in network-input pixels."""
        found = self.detector.predict(inputs, samples, rescale=False)
        results = [sample.get('pred_instances') for sample in found]
        for result in results:
            if result is None or 'bboxes' not in result:
                raise ValueError(
                    f'{type(self.detector).__name__} predicts no boxes, and '
                    'boxes are what the energy model refines'
                )
            if 'masks' in result:
                raise ValueError(
                    f'the masks of {type(self.detector).__name__} are not '
                    'predicted from its boxes by a known way, so that '
                    'refining the boxes would part them from their masks'
                )
        return results

    def candidates(self, inputs: Tensor, samples: SampleList) -> InstanceList:
        """Boxes above the score threshold before NMS, as ``detections``."""
        raise NotImplementedError

    def add_masks(
        self,
        neck_maps: Sequence[Tensor],
        results: InstanceList,
        metas: Sequence[dict],
        rescale: bool,
    ) -> InstanceList:
        """The results with what follows from refined boxes.

        Args:
            neck_maps: The detector's maps.
            results: Refined boxes in network-input pixels; they stay there.
            metas: Meta information of the images.
            rescale: Whether masks are wanted in the original image's frame.
        """
        return results


@BOX_SOURCES.register_module()
class DenseBoxSource(BoxSource):
    """RetinaNet, FCOS, ATSS, GFL and others with a dense head."""

    @classmethod
    def suits(cls, detector: nn.Module) -> bool:
        if not isinstance(detector, SingleStageDetector):
            return False
        head = getattr(detector, 'bbox_head', None)
        return (
            type(detector).predict is SingleStageDetector.predict
            and isinstance(head, BaseDenseHead)
            and type(head).predict is BaseDenseHead.predict
            # PAA votes among boxes after its NMS, RTMDet-Ins has masks
            # there; neither offers boxes before.
            and not isinstance(head, PAAHead | RTMDetInsHead)
            and 'with_nms'
            in inspect.signature(head.predict_by_feat).parameters
        )

    @property
    def test_cfg(self) -> OptConfigType:
        test_cfg = self.detector.bbox_head.test_cfg
        # As slices end: None is no limit, and 0 is one.
        limit = (test_cfg or {}).get('max_per_img', 0)
        return _without_limit(test_cfg, limit is None)

    def candidates(self, inputs: Tensor, samples: SampleList) -> InstanceList:
        head = self.detector.bbox_head
        outs = head(self.detector.extract_feat(inputs))
        return head.predict_by_feat(
            *outs,
            batch_img_metas=[sample.metainfo for sample in samples],
            rescale=False,
            with_nms=False,
        )


@BOX_SOURCES.register_module()
class TwoStageBoxSource(BoxSource):
    """Faster, Cascade and Mask R-CNN; masks come from the refined boxes."""

    @classmethod
    def suits(cls, detector: nn.Module) -> bool:
        if not isinstance(detector, TwoStageDetector):
            return False
        kind = type(getattr(detector, 'roi_head', None))
        return (
            type(detector).predict is TwoStageDetector.predict
            and getattr(kind, 'predict', None) is BaseRoIHead.predict
            and kind.predict_bbox
            in (StandardRoIHead.predict_bbox, CascadeRoIHead.predict_bbox)
        )

    @property
    def test_cfg(self) -> OptConfigType:
        test_cfg = self.detector.roi_head.test_cfg
        # As mmdet's multiclass_nms has it.
        limit = test_cfg.get('max_per_img')
        return _without_limit(test_cfg, limit is None or limit <= 0)

    def detections(self, inputs: Tensor, samples: SampleList) -> InstanceList:
        return self._predict_bbox(inputs, samples, self.test_cfg)

    def candidates(self, inputs: Tensor, samples: SampleList) -> InstanceList:
        raw = self._predict_bbox(inputs, samples, None)
        return [class_candidates(r, self.test_cfg.score_thr) for r in raw]

    def _predict_bbox(
        self, inputs: Tensor, samples: SampleList, test_cfg: OptConfigType
    ) -> InstanceList:
        # As TwoStageDetector.predict, up to the boxes.
        x = self.detector.extract_feat(inputs)
        if samples[0].get('proposals') is None:
            proposals = self.detector.rpn_head.predict(
                x, samples, rescale=False
            )
        else:
            proposals = [sample.proposals for sample in samples]
        return self.detector.roi_head.predict_bbox(
            x,
            [sample.metainfo for sample in samples],
            proposals,
            rcnn_test_cfg=test_cfg,
            rescale=False,
        )

    def add_masks(
        self,
        neck_maps: Sequence[Tensor],
        results: InstanceList,
        metas: Sequence[dict],
        rescale: bool,
    ) -> InstanceList:
        head = self.detector.roi_head
        if not head.with_mask:
            return results
        # Copies: mmdet rescales the boxes it is given in place.
        copies = [
            InstanceData(bboxes=r.bboxes.clone(), labels=r.labels)
            for r in results
        ]
        masked = head.predict_mask(neck_maps, metas, copies, rescale=rescale)
        return [
            InstanceData(masks=mask.masks, **dict(result.items()))
            for result, mask in zip(results, masked)
        ]


def source_for(detector: nn.Module) -> BoxSource:
    """The newest of ``BOX_SOURCES`` that suits a detector."""
    sources = list(BOX_SOURCES.module_dict.values())
    return next(kind for kind in reversed(sources) if kind.suits(detector))(
        detector
    )


def _without_limit(test_cfg: ConfigType, without: bool) -> ConfigType:
    """No limit of boxes is -1 in this package; mmdet's heads disagree."""
    return ConfigDict(test_cfg, max_per_img=-1) if without else test_cfg


def require_plain_nms(test_cfg: OptConfigType) -> ConfigType:
    """The config of the NMS that log-densities can order.

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


def _last(module: nn.Module | None) -> nn.Module | None:
    return module[-1] if isinstance(module, nn.ModuleList) else module
