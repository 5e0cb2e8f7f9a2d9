"""A two-stage detector that trains an energy model beside or after itself."""

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from .energy_roi_head import EnergyRoIHead


@MODELS.register_module()
class EnergyTwoStageDetector(TwoStageDetector):
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
                'the config in the README')
        self.freeze_detector = freeze_detector
        if freeze_detector:
            self.requires_grad_(False)
            self.roi_head.refiner.requires_grad_(True)

    def train(self, mode: bool = True) -> 'EnergyTwoStageDetector':
        """Set the mode; a frozen detector stays in eval mode."""
        super().train(mode)
        if mode and self.freeze_detector:
            for child in self.children():
                child.eval()
            self.roi_head.refiner.train()
        return self

    def loss(self, batch_inputs: Tensor,
             batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The energy model's loss, with the detector's if it is not frozen."""
        if not self.freeze_detector:
            return super().loss(batch_inputs, batch_data_samples)
        with torch.no_grad():
            x = self.extract_feat(batch_inputs)
        return self.roi_head.energy_loss(x, batch_data_samples)
