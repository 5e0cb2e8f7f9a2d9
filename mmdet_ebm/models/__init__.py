"""Energy models for mmdet: importing this package registers them."""

from .adapters import ADAPTERS, DetectorAdapter
from .boxes import Boxes, RefinedBoxes
from .detectron import (
    DetectronAnchorGenerator,
    DetectronBoxCoder,
    DetectronEnergyDetector,
)
from .energy_detector import EnergyDetector
from .energy_head import EnergyHead
from .energy_nms import energy_nms
from .energy_roi_head import EnergyRoIHead
from .energy_two_stage import EnergyTwoStageDetector
from .iou_net import IoUNetRefiner
from .losses import (
    DSMLoss,
    EnergyLoss,
    KLDISLoss,
    LocalizationConfidenceLoss,
    MLISLoss,
    MLMCMCLoss,
    NCELoss,
    NCEPlusLoss,
    SMLoss,
)
from .refinement import Refinement, refine_detections
from .refiner import EnergyRefiner
from .roi_extractor import PreciseRoIExtractor
from .uncertainty import BoxUncertainty, UncertaintyEstimator

__all__ = [
    'ADAPTERS',
    'BoxUncertainty',
    'Boxes',
    'DSMLoss',
    'DetectorAdapter',
    'DetectronAnchorGenerator',
    'DetectronBoxCoder',
    'DetectronEnergyDetector',
    'EnergyDetector',
    'EnergyHead',
    'EnergyLoss',
    'EnergyRefiner',
    'EnergyRoIHead',
    'EnergyTwoStageDetector',
    'IoUNetRefiner',
    'KLDISLoss',
    'LocalizationConfidenceLoss',
    'MLISLoss',
    'MLMCMCLoss',
    'NCELoss',
    'NCEPlusLoss',
    'PreciseRoIExtractor',
    'RefinedBoxes',
    'Refinement',
    'SMLoss',
    'UncertaintyEstimator',
    'energy_nms',
    'refine_detections',
]
