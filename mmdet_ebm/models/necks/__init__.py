"""Feature pyramids that belong to the energy model."""

from .energy_neck import EnergyNeck

__all__ = ['EnergyNeck']
