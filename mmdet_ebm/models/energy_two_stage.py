"""A two-stage detector that trains an energy model beside or after itself."""

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from .energy_roi_head import EnergyRoIHead
from .frozen import TrainsEnergyModel, quick_layout
from .refinement import Refinement
from .refiner import EnergyRefiner


@MODELS.register_module()
class EnergyTwoStageDetector(TrainsEnergyModel, TwoStageDetector):
    """Faster R-CNN (or Mask R-CNN) with an energy model in its RoI head.

    Its parameters are named as the plain detector's, the energy model's lie
    under ``roi_head.refiner``, so a plain checkpoint loads as it is.

    Args:
        *args, **kwargs: Arguments of ``TwoStageDetector``; ``roi_head`` must
            be an ``EnergyRoIHead``.
        freeze_detector: Train the energy model alone. Everything else stays in
            eval mode and without gradients, and the detector's own losses are
            not computed. False trains all of it jointly.
    """

    def __init__(self, *args, freeze_detector: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.roi_head, EnergyRoIHead):
            raise TypeError(
                'EnergyTwoStageDetector needs model.roi_head of type '
                f'EnergyRoIHead, got {type(self.roi_head).__name__}; see '
                'the config in the README'
            )
        self.freeze_if_wanted(freeze_detector)

    @property
    def refiner(self) -> EnergyRefiner:
        """The energy model."""
        return self.roi_head.refiner

    @property
    def refinement(self) -> Refinement:
        """Stages at test time; can be set."""
        return self.roi_head.refinement

    @refinement.setter
    def refinement(self, stages: Refinement) -> None:
        self.roi_head.refinement = stages

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """The energy model's loss, with the detector's if it is not frozen."""
        if not self.freeze_detector:
            return super().loss(batch_inputs, batch_data_samples)
        with torch.no_grad():
            x = self.extract_feat(quick_layout(batch_inputs))
        return self.roi_head.energy_loss(x, batch_data_samples)
