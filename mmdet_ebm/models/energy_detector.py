"""Any mmdet detector with an energy model behind it."""

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from torch import Tensor

from .adapters import adapt
from .feature_tap import FeatureTap
from .frozen import TrainsEnergyModel, quick_layout
from .refinement import (
    Refinement,
    build_refiner,
    energy_loss,
    refine_detections,
)

# Coarser levels are for anchors larger than the images themselves; a box is
# pooled from these as from a two-stage detector's.
_COARSEST_STRIDE = 32


@MODELS.register_module()
class EnergyDetector(TrainsEnergyModel, BaseDetector):
    """Refines the boxes of any detector with a feature pyramid.

    Test: the detector's candidates -> log-densities -> NMS ordered by them ->
    gradient ascent; a detector without class-wise NMS, as DETR and its kin,
    has its boxes moved only. Two-stage detectors predict masks on the refined
    boxes. With both stages off it is the plain detector.

    Its state is that of the detector under ``detector.`` and the energy
    model's under ``refiner.``; a checkpoint of the plain detector loads as it
    is. ``EnergyTwoStageDetector`` is the same for Faster R-CNN, with the
    energy model inside its RoI head.

    Args:
        detector: Config of any detector of mmdet.
        refiner: Config of an ``EnergyRefiner``. What it leaves out is read
            from the detector: number of classes, channels and strides of the
            levels (those with strides up to 32).
        refinement: Stages at test time, see :class:`Refinement`;
            ``energy_nms`` is on by default where the detector has an NMS that
            energies can order.
        features: Where the energy model's maps come from: 'neck', or the
            'encoder' of a transformer.
        freeze_detector: Train the energy model alone. The detector stays in
            eval mode and without gradients, and its losses are not computed.
            False trains both.
        data_preprocessor: Instead of the detector's own.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: If the detector has no boxes or no suitable maps, or is to
            order by energy what it does not offer.
    """

    def __init__(
        self,
        detector: ConfigType,
        refiner: ConfigType,
        refinement: dict | None = None,
        features: str = 'neck',
        freeze_detector: bool = True,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.detector = MODELS.build(detector)
        if data_preprocessor is None:
            self.data_preprocessor = self.detector.data_preprocessor
        self._adapter = adapt(self.detector)
        self._tap = FeatureTap(self.detector, features)
        self.refiner = build_refiner(
            refiner, self._num_classes(refiner), **self._levels(refiner)
        )
        self.refinement = self._refinement(refinement or {})
        self.freeze_if_wanted(freeze_detector)
        self._register_load_state_dict_pre_hook(self.prefix_plain_keys)

    # --------------------------------------------------------- construction

    def _num_classes(self, refiner: ConfigType) -> int:
        number = self._adapter.num_classes
        if number is None:
            number = refiner.get('head', {}).get('num_classes')
        if number is None:
            raise ValueError(
                f'{type(self.detector).__name__} has no box head that tells '
                'its number of classes. If it predicts boxes, set '
                'model.refiner.head.num_classes'
            )
        return number

    def _levels(self, refiner: ConfigType) -> dict:
        """Channels, strides and finest scale, as measured or as set."""
        given = refiner.get('roi_extractor', {})
        levels = self._adapter.levels
        if levels is None and {'out_channels', 'featmap_strides'} <= set(
            given
        ):
            levels = dict(
                out_channels=given['out_channels'],
                featmap_strides=given['featmap_strides'],
            )
        if levels is None:
            channels, strides = self._tap.measure()
            strides = tuple(
                s for s in strides if s <= max(_COARSEST_STRIDE, strides[0])
            )
            levels = dict(out_channels=channels, featmap_strides=strides)
        # FPN's rule, a box of 224 pixels at stride 16, from this first level.
        levels.setdefault('finest_scale', 14 * levels['featmap_strides'][0])
        return levels

    def _refinement(self, stages: dict) -> Refinement:
        self.orders_by_energy = self._adapter.orders_by_energy
        stages = Refinement(**{'energy_nms': self.orders_by_energy, **stages})
        self._check_stages(stages)
        return stages

    def _check_stages(self, stages: Refinement) -> None:
        if stages.energy_nms and not self.orders_by_energy:
            raise ValueError(
                f'{type(self.detector).__name__} has no class-wise NMS with '
                "nms=dict(type='nms', iou_threshold=...) whose candidates are "
                'known, so there is nothing to order by energy: set '
                'model.refinement.energy_nms=False'
            )

    @staticmethod
    def prefix_plain_keys(state_dict: dict, prefix: str = '', *args) -> None:
        """Rename a plain detector's state to this one's, in place.

        So with the state of an ``EnergyTwoStageDetector``, whose energy model
        lies in its RoI head.
        """
        own = tuple(prefix + name for name in ('detector.', 'refiner.'))
        if any(key.startswith(own[0]) for key in state_dict):
            return
        inner = prefix + 'roi_head.refiner.'
        for key in list(state_dict):
            if key.startswith(inner):
                new = own[1] + key[len(inner) :]
            elif key.startswith(prefix) and not key.startswith(own):
                new = own[0] + key[len(prefix) :]
            else:
                continue
            state_dict[new] = state_dict.pop(key)

    # ------------------------------------------------------------- training

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """The energy model's loss, with the detector's if it is not frozen."""
        if self.freeze_detector:
            with torch.no_grad():
                maps = self._tap.run(
                    quick_layout(batch_inputs), batch_data_samples
                )
            return energy_loss(self.refiner, maps, batch_data_samples)
        with self._tap.running() as recording:
            losses = self.detector.loss(batch_inputs, batch_data_samples)
        losses.update(
            energy_loss(self.refiner, recording.maps, batch_data_samples)
        )
        return losses

    # ----------------------------------------------------------------- test

    def predict(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = True,
    ) -> SampleList:
        """Detections after the stages of ``refinement``.

        Beside the detector's own fields, results carry those that
        :func:`refine_detections` adds.
        """
        stages = self.refinement
        if not stages.is_on:
            return self.detector.predict(
                batch_inputs, batch_data_samples, rescale
            )
        self._check_stages(stages)
        find = (
            self._adapter.candidates
            if stages.energy_nms
            else self._adapter.detections
        )
        with self._tap.running() as recording:
            found = find(batch_inputs, batch_data_samples)
        results = refine_detections(
            self.refiner,
            stages,
            recording.maps,
            found,
            [sample.metainfo for sample in batch_data_samples],
            self._adapter.test_cfg,
        )
        results = self._adapter.finish(
            recording.neck_maps, results, batch_data_samples, rescale
        )
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> tuple:
        """The detector's raw outputs."""
        return self.detector._forward(batch_inputs, batch_data_samples)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """The detector's feature maps."""
        return self.detector.extract_feat(batch_inputs)
