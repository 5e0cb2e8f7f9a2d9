"""Pictures of boxes and energies."""

from .energy_map import EnergyMapFigure
from .refinement import draw_refinement, draw_side_bands
from .reliability import draw_reliability

__all__ = [
    'EnergyMapFigure',
    'draw_refinement',
    'draw_reliability',
    'draw_side_bands',
]
