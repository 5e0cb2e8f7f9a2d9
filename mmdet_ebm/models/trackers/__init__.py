"""Energy models of one target's box in a video."""

from .backbone import MobileNetV2Stem
from .correlation_filter import CorrelationFilter
from .energy_sot import EnergySOT, TrackedTarget
from .target_conditional_energy import (
    RefinedTargets,
    TargetConditionalEnergy,
    Template,
)
from .target_energy_model import TargetEnergyModel, TargetScene
from .track_refiner import RefinedTrack, TrackRefiner

__all__ = [
    'CorrelationFilter',
    'EnergySOT',
    'MobileNetV2Stem',
    'RefinedTargets',
    'RefinedTrack',
    'TargetConditionalEnergy',
    'TargetEnergyModel',
    'TargetScene',
    'Template',
    'TrackRefiner',
    'TrackedTarget',
]
