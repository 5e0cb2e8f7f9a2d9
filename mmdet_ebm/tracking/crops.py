"""Parts of a frame around a target, brought to one size."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Region:
    """A rectangle of whole pixels, which may reach out of its frame.

    Attributes:
        x: Left side, in pixels of the frame.
        y: Top side.
        width: In pixels of the frame.
        height: In pixels of the frame.
        size: Side of the square patch that it becomes, in pixels.
    """

    x: int
    y: int
    width: int
    height: int
    size: int

    @classmethod
    def around(
        cls,
        box: np.ndarray,
        context: float,
        size: int,
        shift: tuple[float, float] = (0.0, 0.0),
        log_scale: tuple[float, float] = (0.0, 0.0),
    ) -> 'Region':
        """The region around a box.

        Args:
            box: (4,) corners in the frame.
            context: Side of the region over the root of the box's area.
            size: See above.
            shift: Of the region's centre along x and y, in roots of the
                box's area.
            log_scale: Logarithms of factors on its width and height.
        """
        first, last = np.asarray(box[:2], float), np.asarray(box[2:], float)
        unit = max(float(np.sqrt((last - first).clip(min=0).prod())), 2.0)
        centre = (first + last) / 2 + unit * np.asarray(shift)
        sides = np.exp(log_scale) * unit * context
        width, height = np.maximum(np.round(sides), 1).astype(int).tolist()
        x, y = np.round(centre - sides / 2).astype(int).tolist()
        return cls(x, y, width, height, size)

    @property
    def _scale(self) -> np.ndarray:
        return self.size / np.array([self.width, self.height] * 2, float)

    def to_patch(self, boxes: np.ndarray) -> np.ndarray:
        """Corners (..., 4) in the frame -> in the patch."""
        return (boxes - np.array([self.x, self.y] * 2)) * self._scale

    def to_frame(self, boxes: np.ndarray) -> np.ndarray:
        """Corners (..., 4) in the patch -> in the frame."""
        return boxes / self._scale + np.array([self.x, self.y] * 2)

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """The patch (size, size, 3); beyond the frame its edge goes on."""
        height, width = frame.shape[:2]
        # At least one pixel of the frame, however far away the region is.
        left, right = np.clip([self.x, self.x + self.width], 0, width)
        top, bottom = np.clip([self.y, self.y + self.height], 0, height)
        left, top = min(left, width - 1), min(top, height - 1)
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        patch = cv2.copyMakeBorder(
            frame[top:bottom, left:right],
            max(top - self.y, 0),
            max(self.y + self.height - bottom, 0),
            max(left - self.x, 0),
            max(self.x + self.width - right, 0),
            cv2.BORDER_REPLICATE,
        )[: self.height, : self.width]
        shrinks = self.size < max(self.width, self.height)
        return cv2.resize(
            patch,
            (self.size, self.size),
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
