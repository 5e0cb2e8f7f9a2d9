"""Training methods as mmdet losses."""

from .energy_losses import (
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

__all__ = [
    'DSMLoss',
    'EnergyLoss',
    'KLDISLoss',
    'LocalizationConfidenceLoss',
    'MLISLoss',
    'MLMCMCLoss',
    'NCELoss',
    'NCEPlusLoss',
    'SMLoss',
]
