"""Pictures of boxes and energies."""

from .refinement import draw_refinement

__all__ = ['draw_refinement']
