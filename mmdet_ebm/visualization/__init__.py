"""Pictures of boxes and energies."""

from ..environment import require_mmdet

require_mmdet()


from .energy_map import EnergyMapFigure
from .refinement import draw_refinement
from .reliability import draw_reliability

__all__ = [
    'EnergyMapFigure',
    'draw_refinement',
    'draw_reliability',
]
