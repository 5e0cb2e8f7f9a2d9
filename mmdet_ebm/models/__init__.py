"""Energy models for mmdet: importing this package registers them."""

from .energy_detector import EnergyTwoStageDetector
from .energy_head import EnergyHead
from .energy_nms import energy_nms
from .energy_roi_head import EnergyRoIHead
from .losses import (DSMLoss, EnergyLoss, KLDISLoss,
                     LocalizationConfidenceLoss, MLISLoss, MLMCMCLoss, NCELoss,
                     NCEPlusLoss, SMLoss)
from .refinement import Refinement, refine_detections
from .refiner import Boxes, EnergyRefiner, IoUNetRefiner, RefinedBoxes
from .roi_extractor import PreciseRoIExtractor
from .uncertainty import BoxUncertainty, UncertaintyEstimator

__all__ = [
    'BoxUncertainty', 'Boxes', 'DSMLoss', 'EnergyHead', 'EnergyLoss',
    'EnergyRefiner', 'EnergyRoIHead', 'EnergyTwoStageDetector',
    'IoUNetRefiner', 'KLDISLoss', 'LocalizationConfidenceLoss', 'MLISLoss',
    'MLMCMCLoss', 'NCELoss', 'NCEPlusLoss', 'PreciseRoIExtractor',
    'RefinedBoxes', 'Refinement', 'SMLoss', 'UncertaintyEstimator',
    'energy_nms', 'refine_detections'
]
