"""How boxes are drawn into matplotlib's figures."""

from matplotlib.patches import Rectangle

from .refinement import AFTER_COLOUR, BEFORE_COLOUR

BEFORE, AFTER = (
    tuple(c / 255 for c in colour) for colour in (BEFORE_COLOUR, AFTER_COLOUR)
)
STYLES = dict(
    # A colour to be seen on light and dark images.
    truth=dict(edgecolor='magenta', linestyle=':', label='annotation'),
    before=dict(edgecolor=BEFORE, linestyle='--', label='before'),
    after=dict(edgecolor=AFTER, label='refined'),
)


def rectangle(corners, **style) -> Rectangle:
    """A box (4,) by its outline, unless the style says otherwise."""
    x1, y1, x2, y2 = corners.tolist()
    style = dict(fill=False, linewidth=1.2) | style
    return Rectangle((x1, y1), x2 - x1, y2 - y1, **style)
