"""Pictures of boxes and energies."""

from ..environment import require_mmdet

require_mmdet()


from .contact_sheet import ContactSheet
from .energy_map import EnergyMapFigure
from .refinement import draw_refinement
from .reliability import draw_reliability

__all__ = [
    'ContactSheet',
    'EnergyMapFigure',
    'draw_refinement',
    'draw_reliability',
]
