"""Energy models for mmdet: importing this package registers them."""

from .energy_detector import EnergyTwoStageDetector
from .energy_head import EnergyHead
from .energy_nms import energy_nms
from .energy_roi_head import EnergyRoIHead, Refinement
from .losses import EnergyLoss, NCELoss, NCEPlusLoss
from .refiner import Boxes, EnergyRefiner, RefinedBoxes
from .roi_extractor import PreciseRoIExtractor

__all__ = [
    'Boxes', 'EnergyHead', 'EnergyLoss', 'EnergyRefiner', 'EnergyRoIHead',
    'EnergyTwoStageDetector', 'NCELoss', 'NCEPlusLoss', 'PreciseRoIExtractor',
    'RefinedBoxes', 'Refinement', 'energy_nms'
]
