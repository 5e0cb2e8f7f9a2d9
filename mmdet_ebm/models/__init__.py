"""Energy models for mmdet: importing this package registers them.

E = -f: what the papers call the energy is the negative of the log-density
that is computed, trained and climbed here.
"""

from ..environment import require_mmdet

require_mmdet()

from .detectors import (
    BOX_SOURCES,
    BoxSource,
    DetectronAnchorGenerator,
    DetectronBoxCoder,
    DetectronEnergyDetector,
    EnergyDetector,
    Refinement,
    energy_nms,
)
from .energy_model import EnergyModel, RefinedBoxes
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
from .necks import EnergyNeck
from .roi_heads import EnergyHead
from .trackers import (
    EnergySOT,
    MobileNetV2Stem,
    TargetConditionalEnergy,
    TargetEnergyModel,
)
from .uncertainty import BoxUncertainty, UncertaintyEstimator

__all__ = [
    'BOX_SOURCES',
    'BoxSource',
    'BoxUncertainty',
    'DSMLoss',
    'DetectronAnchorGenerator',
    'DetectronBoxCoder',
    'DetectronEnergyDetector',
    'EnergyDetector',
    'EnergyHead',
    'EnergyLoss',
    'EnergyModel',
    'EnergyNeck',
    'EnergySOT',
    'KLDISLoss',
    'LocalizationConfidenceLoss',
    'MLISLoss',
    'MLMCMCLoss',
    'MobileNetV2Stem',
    'NCELoss',
    'NCEPlusLoss',
    'RefinedBoxes',
    'Refinement',
    'SMLoss',
    'TargetConditionalEnergy',
    'TargetEnergyModel',
    'UncertaintyEstimator',
    'energy_nms',
]
