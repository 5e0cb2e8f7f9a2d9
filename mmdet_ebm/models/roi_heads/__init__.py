"""What follows the pooling of boxes."""

from .energy_head import EnergyHead

__all__ = ['EnergyHead']
