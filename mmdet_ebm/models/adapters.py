"""How kinds of detectors give their boxes, before and after their NMS.

A detector not listed works through :class:`DetectorAdapter`: its final boxes
are refined. To have them ordered by energy as well, subclass it and put it
first in ``ADAPTERS``.
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
from mmdet.utils import ConfigType, InstanceList
from torch import Tensor, nn

from .refinement import (
    class_candidates,
    others_to_original_frame,
    require_plain_nms,
    to_original_frame,
)


class DetectorAdapter:
    """Any detector: its final boxes, among which nothing is left to suppress.

    Args:
        detector: Built by mmdet; used, not owned.
    """

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector

    @classmethod
    def suits(cls, detector: nn.Module) -> bool:
        """Whether this adapter knows how the detector predicts."""
        return True

    @property
    def num_classes(self) -> int | None:
        """Classes of the box head, None where it does not say."""
        parent = getattr(self.detector, 'roi_head', self.detector)
        head = _last(getattr(parent, 'bbox_head', None))
        return getattr(head, 'num_classes', None)

    @property
    def levels(self) -> dict | None:
        """``out_channels``, ``featmap_strides`` and ``finest_scale`` of a RoI
        extractor, None without one."""
        head = getattr(self.detector, 'roi_head', None)
        extractor = _last(getattr(head, 'bbox_roi_extractor', None))
        if extractor is None:
            return None
        strides = tuple(extractor.featmap_strides)
        return dict(
            out_channels=extractor.out_channels,
            featmap_strides=strides,
            finest_scale=getattr(extractor, 'finest_scale', 14 * strides[0]),
        )

    @property
    def test_cfg(self) -> ConfigType | None:
        """Settings with the ``nms`` that energies may order, if any."""
        return None

    @property
    def orders_by_energy(self) -> bool:
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

    def finish(
        self,
        features: Sequence[Tensor],
        results: InstanceList,
        samples: SampleList,
        rescale: bool,
    ) -> InstanceList:
        """What follows the refined boxes, and the frame that is wanted."""
        if not rescale:
            return results
        return [
            to_original_frame(result, sample.metainfo)
            for result, sample in zip(results, samples, strict=True)
        ]


class DenseAdapter(DetectorAdapter):
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
            and not isinstance(head, (PAAHead, RTMDetInsHead))
            and 'with_nms'
            in inspect.signature(head.predict_by_feat).parameters
        )

    @property
    def test_cfg(self) -> ConfigType | None:
        return self.detector.bbox_head.test_cfg

    def candidates(self, inputs: Tensor, samples: SampleList) -> InstanceList:
        head = self.detector.bbox_head
        outs = head(self.detector.extract_feat(inputs))
        return head.predict_by_feat(
            *outs,
            batch_img_metas=[sample.metainfo for sample in samples],
            rescale=False,
            with_nms=False,
        )


class TwoStageAdapter(DetectorAdapter):
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
    def test_cfg(self) -> ConfigType | None:
        return self.detector.roi_head.test_cfg

    def detections(self, inputs: Tensor, samples: SampleList) -> InstanceList:
        return self._predict_bbox(inputs, samples, self.test_cfg)

    def candidates(self, inputs: Tensor, samples: SampleList) -> InstanceList:
        raw = self._predict_bbox(inputs, samples, None)
        return [class_candidates(r, self.test_cfg.score_thr) for r in raw]

    def _predict_bbox(self, inputs, samples, test_cfg):
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

    def finish(
        self,
        features: Sequence[Tensor],
        results: InstanceList,
        samples: SampleList,
        rescale: bool,
    ) -> InstanceList:
        head = self.detector.roi_head
        if not head.with_mask:
            return super().finish(features, results, samples, rescale)
        metas = [sample.metainfo for sample in samples]
        results = head.predict_mask(features, metas, results, rescale=rescale)
        return others_to_original_frame(results, metas) if rescale else results


ADAPTERS: list[type[DetectorAdapter]] = [
    TwoStageAdapter,
    DenseAdapter,
    DetectorAdapter,
]


def adapt(detector: nn.Module) -> DetectorAdapter:
    """The first of ``ADAPTERS`` that suits a detector."""
    return next(kind for kind in ADAPTERS if kind.suits(detector))(detector)


def _last(module: nn.Module | None) -> nn.Module | None:
    return module[-1] if isinstance(module, nn.ModuleList) else module
