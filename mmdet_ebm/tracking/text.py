"""Boxes in text files, one line a frame: ``x y w h``."""

import re
from pathlib import Path

import numpy as np

from ..files import write_text


def read_boxes(path: str | Path, first_pixel: int) -> np.ndarray:
    """Read a box of each line.

    Numbers are separated by commas, spaces or tabs. A box that is not finite
    or has no area means that the target is absent.

    Args:
        path: The file.
        first_pixel: What the file calls the top-left pixel: 1 in OTB's.

    Returns:
        (T, 4) corners, NaN where absent.

    Raises:
        ValueError: If a line does not hold four numbers.
    """
    rows = []
    lines = Path(path).read_text().strip().splitlines()
    for number, line in enumerate(lines, 1):
        fields = [f for f in re.split(r'[,;\s]+', line) if f]
        try:
            row = [float(field) for field in fields]
        except ValueError:
            row = []
        if len(row) != 4:
            raise ValueError(
                f'line {number} of {path} should hold x, y, w and h, and is '
                f'{line!r}'
            )
        rows.append(row)
    boxes = np.array(rows, float).reshape(-1, 4)
    first = boxes[:, :2] - first_pixel
    with np.errstate(over='ignore'):  # infinity is not known either
        corners = np.hstack([first, first + boxes[:, 2:]])
    known = np.isfinite(corners).all(1) & (corners[:, 2:] > first).all(1)
    corners[~known] = np.nan
    return corners


def write_boxes(
    path: str | Path, corners: np.ndarray, first_pixel: int
) -> None:
    """Write what :func:`read_boxes` reads, with commas and two decimals.

    Args:
        path: The file; its folder is made.
        corners: (T, 4); rows of NaN are written as such.
        first_pixel: See :func:`read_boxes`.
    """
    first, last = corners[:, :2], corners[:, 2:]
    rows = np.hstack([first + first_pixel, last - first])
    lines = [','.join(f'{v:.2f}' for v in row) + '\n' for row in rows]
    # Complete or not there: a file that is there counts as done.
    write_text(path, ''.join(lines))
