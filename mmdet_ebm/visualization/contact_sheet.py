"""Frames of a video on one page, with a target's boxes."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .marks import STYLES, rectangle

_COLUMNS = 4


class ContactSheet:
    """Frames side by side, each with its boxes.

    Args:
        frames: (H, W, 3) uint8 RGB.
        titles: Text above each.
        boxes: By what they are, ``before``, ``after`` or ``truth``: corners
            (n, 4) in the frames' pixels. One that is NaN is left out.
    """

    def __init__(
        self,
        frames: Sequence[np.ndarray],
        titles: Sequence[str],
        **boxes: np.ndarray,
    ) -> None:
        rows = math.ceil(len(frames) / _COLUMNS)
        height, width = frames[0].shape[:2]
        self.figure = Figure(
            figsize=(12, rows * (0.4 + 3 * height / width)),
            layout='constrained',
        )
        FigureCanvasAgg(self.figure)
        axes = self.figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for number, each in enumerate(axes):
            each.set_axis_off()
            if number >= len(frames):
                continue
            each.imshow(frames[number])
            each.set_title(titles[number], fontsize=9)
            for kind, style in STYLES.items():
                if kind in boxes and np.isfinite(boxes[kind][number]).all():
                    each.add_patch(rectangle(boxes[kind][number], **style))

    def save(self, out_file: str | Path) -> None:
        """Write a picture."""
        self.figure.savefig(str(out_file), dpi=80)
