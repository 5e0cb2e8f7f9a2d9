"""mmdet's standard RoI head with energies behind its box head."""

from dataclasses import dataclass
from typing import Optional

from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import ConfigType, InstanceList
from mmengine.structures import InstanceData
from torch import Tensor

from .energy_nms import energy_nms
from .refiner import Boxes


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
    """
    energy_nms: bool = True
    ascent: bool = True
    nms_pre: int = 1000


@MODELS.register_module()
class EnergyRoIHead(StandardRoIHead):
    """Standard RoI head whose boxes are ordered and refined by energies.

    Test: box head -> log-densities -> NMS ordered by them -> gradient ascent.
    With both stages off it is the plain head. A mask head gets the refined
    boxes. Everything else is ``StandardRoIHead``.

    Args:
        refiner: Config of an ``EnergyRefiner``. What it leaves out is read
            from the box head and its extractor: number of classes, channels
            and strides of the levels.
        refinement: Stages at test time, see :class:`Refinement`.
        **kwargs: Arguments of ``StandardRoIHead``.
    """

    def __init__(self,
                 refiner: ConfigType,
                 refinement: Optional[dict] = None,
                 **kwargs) -> None:
        super().__init__(**kwargs)
        self.refiner = MODELS.build(self._complete(refiner))
        self.refinement = Refinement(**(refinement or {}))
        classes = self.bbox_head.num_classes
        if self.refiner.head.num_classes != classes:
            raise ValueError(
                f'the box head has num_classes={classes} and the energy head '
                f'{self.refiner.head.num_classes}; set model.roi_head.refiner.'
                'head.num_classes to the same number')

    def _complete(self, refiner: ConfigType) -> ConfigType:
        """The refiner's config with the detector's own numbers filled in."""
        levels = self.bbox_roi_extractor
        extractor = dict(type='PreciseRoIExtractor', output_size=7,
                         out_channels=levels.out_channels,
                         featmap_strides=levels.featmap_strides)
        if hasattr(levels, 'finest_scale'):
            extractor['finest_scale'] = levels.finest_scale
        extractor.update(refiner.get('roi_extractor', {}))
        head = dict(type='EnergyHead', num_classes=self.bbox_head.num_classes,
                    in_channels=extractor['out_channels'],
                    roi_feat_size=extractor['output_size'])
        head.update(refiner.get('head', {}))
        return dict(refiner, head=head, roi_extractor=extractor)

    def energy_loss(self, x: tuple[Tensor],
                    batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Loss of the energy model alone, on ground truth.

        Boxes marked as crowd or ignored are left out: they do not fit one
        object.
        """
        instances, _, metas = unpack_gt_instances(batch_data_samples)
        return self.refiner.loss(
            x, [get_box_tensor(i.bboxes) for i in instances],
            [i.labels for i in instances], _image_sizes(metas))

    def loss(self, x: tuple[Tensor], rpn_results_list: InstanceList,
             batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of the box head (and mask head) and of the energy model."""
        losses = super().loss(x, rpn_results_list, batch_data_samples)
        losses.update(self.energy_loss(x, batch_data_samples))
        return losses

    def predict(self,
                x: tuple[Tensor],
                rpn_results_list: InstanceList,
                batch_data_samples: SampleList,
                rescale: bool = False) -> InstanceList:
        """See ``StandardRoIHead.predict``."""
        results = super().predict(x, rpn_results_list, batch_data_samples,
                                  rescale)
        if rescale and self.with_mask:
            # The mask head has brought bboxes to the original image's frame,
            # and knows of no others.
            for result, sample in zip(results, batch_data_samples):
                if 'initial_bboxes' in result:
                    result.initial_bboxes = _to_original(
                        result.initial_bboxes, sample.metainfo)
        return results

    def predict_bbox(self,
                     x: tuple[Tensor],
                     batch_img_metas: list[dict],
                     rpn_results_list: InstanceList,
                     rcnn_test_cfg: ConfigType,
                     rescale: bool = False) -> InstanceList:
        """Detections after the stages of ``refinement``.

        Beside the fields of ``StandardRoIHead.predict_bbox``, results carry
        ``logdensities`` (K,) and, after an ascent, ``initial_bboxes`` (K, 4),
        where it started. Scores are the class scores.
        """
        stages = self.refinement
        if rcnn_test_cfg is None or not (stages.energy_nms or stages.ascent):
            return super().predict_bbox(x, batch_img_metas, rpn_results_list,
                                        rcnn_test_cfg, rescale)
        raw = super().predict_bbox(
            x, batch_img_metas, rpn_results_list,
            None if stages.energy_nms else rcnn_test_cfg, rescale=False)
        return self.refine_raw(x, raw, batch_img_metas, rcnn_test_cfg, rescale)

    def refine_raw(self,
                   x: tuple[Tensor],
                   raw: InstanceList,
                   batch_img_metas: list[dict],
                   rcnn_test_cfg: ConfigType,
                   rescale: bool = False) -> InstanceList:
        """The stages of ``refinement`` on what the box head predicted.

        Args:
            x: Feature maps.
            raw: For each image, in network-input pixels: with the energy NMS
                on, boxes and class scores of all proposals; else detections.
            batch_img_metas: Meta information of the images.
            rcnn_test_cfg: Thresholds of score, NMS and number.
            rescale: Give boxes in the original image's frame.
        """
        stages = self.refinement
        sizes = _image_sizes(batch_img_metas)
        surface = self.refiner.surface(x, sizes)
        # All in network-input pixels: rescaling comes last.
        if stages.energy_nms:
            results = self._nms_by_energy(surface, raw, rcnn_test_cfg)
        else:
            results = raw
        if stages.ascent:
            results = self._ascend(surface, results, sizes)
        if rescale:
            for result, meta in zip(results, batch_img_metas):
                for name in ('bboxes', 'initial_bboxes'):
                    if name in result:
                        result[name] = _to_original(result[name], meta)
        return results

    def _nms_by_energy(self, surface, raw: InstanceList,
                       rcnn_test_cfg: ConfigType) -> InstanceList:
        nms_cfg = rcnn_test_cfg.nms
        if nms_cfg.get('type') != 'nms' or set(nms_cfg) != {
                'type', 'iou_threshold'}:
            raise ValueError(
                'refinement.energy_nms needs test_cfg.rcnn.nms = dict('
                f"type='nms', iou_threshold=...), got {dict(nms_cfg)}. Change "
                'it, or switch energy_nms off.')
        candidates = [
            _candidates(r, rcnn_test_cfg.score_thr, self.refinement.nms_pre)
            for r in raw
        ]
        boxes = Boxes.from_images([c.bboxes for c in candidates],
                                  [c.labels for c in candidates])
        logdensity = self.refiner.logdensity(surface, boxes)
        results = []
        for candidate, (values, ) in zip(candidates, boxes.split(logdensity)):
            keep, scores = energy_nms(
                candidate.bboxes, candidate.scores, candidate.labels, values,
                nms_cfg.iou_threshold, rcnn_test_cfg.max_per_img)
            results.append(
                InstanceData(
                    bboxes=candidate.bboxes[keep],
                    scores=scores,
                    labels=candidate.labels[keep],
                    logdensities=values[keep]))
        return results

    def _ascend(self, surface, results: InstanceList,
                image_sizes) -> InstanceList:
        initial = [get_box_tensor(r.bboxes) for r in results]
        boxes = Boxes.from_images(initial, [r.labels for r in results])
        refined = self.refiner.refine(surface, boxes, image_sizes)
        pieces = boxes.split(refined.corners, refined.logdensity)
        return [
            InstanceData(
                bboxes=corners,
                scores=result.scores,
                labels=result.labels,
                logdensities=logdensity,
                initial_bboxes=start)
            for result, start, (corners,
                                logdensity) in zip(results, initial, pieces)
        ]


def _candidates(raw: InstanceData, score_thr: float,
                nms_pre: int) -> InstanceData:
    """Pairs of box and class above the threshold, the best ``nms_pre``."""
    class_scores = raw.scores[:, :-1]  # mmdet's background class is last
    num_classes = class_scores.shape[1]
    boxes = get_box_tensor(raw.bboxes)
    boxes = boxes.view(len(boxes), boxes.shape[1] // 4, 4)
    boxes = boxes.expand(-1, num_classes, 4)
    index, labels = (class_scores > score_thr).nonzero(as_tuple=True)
    scores = class_scores[index, labels]
    if 0 <= nms_pre < len(scores):
        scores, top = scores.topk(nms_pre)
        index, labels = index[top], labels[top]
    return InstanceData(
        bboxes=boxes[index, labels], scores=scores, labels=labels)


def _image_sizes(metas: list[dict]) -> list[tuple[int, int]]:
    return [tuple(meta['img_shape'][:2]) for meta in metas]


def _to_original(bboxes: Tensor, meta: dict) -> Tensor:
    """From network-input to original-image pixels."""
    scale = bboxes.new_tensor(meta['scale_factor']).repeat(2)
    return bboxes / scale
