"""mmdet's standard RoI head with energies behind its box head."""

from mmdet.models.roi_heads import StandardRoIHead
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, InstanceList
from torch import Tensor

from .refinement import (
    Refinement,
    build_refiner,
    class_candidates,
    energy_loss,
    others_to_original_frame,
    refine_detections,
)


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

    def __init__(
        self, refiner: ConfigType, refinement: dict | None = None, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        levels = self.bbox_roi_extractor
        self.refiner = build_refiner(
            refiner,
            self.bbox_head.num_classes,
            levels.out_channels,
            levels.featmap_strides,
            getattr(levels, 'finest_scale', 56),
        )
        self.refinement = Refinement(**(refinement or {}))

    def energy_loss(
        self, x: tuple[Tensor], batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Loss of the energy model alone, on ground truth."""
        return energy_loss(self.refiner, x, batch_data_samples)

    def loss(
        self,
        x: tuple[Tensor],
        rpn_results_list: InstanceList,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Losses of the box head (and mask head) and of the energy model."""
        losses = super().loss(x, rpn_results_list, batch_data_samples)
        losses.update(self.energy_loss(x, batch_data_samples))
        return losses

    def predict(
        self,
        x: tuple[Tensor],
        rpn_results_list: InstanceList,
        batch_data_samples: SampleList,
        rescale: bool = False,
    ) -> InstanceList:
        """See ``StandardRoIHead.predict``."""
        results = super().predict(
            x, rpn_results_list, batch_data_samples, rescale
        )
        if rescale and self.with_mask:
            return others_to_original_frame(
                results, [sample.metainfo for sample in batch_data_samples]
            )
        return results

    def predict_bbox(
        self,
        x: tuple[Tensor],
        batch_img_metas: list[dict],
        rpn_results_list: InstanceList,
        rcnn_test_cfg: ConfigType,
        rescale: bool = False,
    ) -> InstanceList:
        """Detections after the stages of ``refinement``.

        Beside the fields of ``StandardRoIHead.predict_bbox``, results carry
        ``logdensities`` (K,) and, after an ascent, ``initial_bboxes`` (K, 4),
        where it started. Scores are the class scores.
        """
        stages = self.refinement
        if rcnn_test_cfg is None or not stages.is_on:
            return super().predict_bbox(
                x, batch_img_metas, rpn_results_list, rcnn_test_cfg, rescale
            )
        raw = super().predict_bbox(
            x,
            batch_img_metas,
            rpn_results_list,
            None if stages.energy_nms else rcnn_test_cfg,
            rescale=False,
        )
        return self.refine_raw(x, raw, batch_img_metas, rcnn_test_cfg, rescale)

    def refine_raw(
        self,
        x: tuple[Tensor],
        raw: InstanceList,
        batch_img_metas: list[dict],
        rcnn_test_cfg: ConfigType,
        rescale: bool = False,
    ) -> InstanceList:
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
        if stages.energy_nms:
            raw = [class_candidates(r, rcnn_test_cfg.score_thr) for r in raw]
        return refine_detections(
            self.refiner,
            stages,
            x,
            raw,
            batch_img_metas,
            rcnn_test_cfg,
            rescale,
        )
