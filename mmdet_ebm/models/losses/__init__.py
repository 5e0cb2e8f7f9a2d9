"""Training methods as mmdet losses."""

from .energy_losses import (
    MEASURED,
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
    'MEASURED',
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
