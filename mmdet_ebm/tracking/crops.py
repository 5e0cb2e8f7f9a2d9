"""Parts of a frame around a target, brought to one size."""

from dataclasses import dataclass

import cv2
import numpy as np

# Pixels from a frame beyond which no region goes, so that they stay integers.
_FAR = 2**30
# Pixels of a region that is reduced before its edge is continued.
_LARGE = 2**24


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
        corner = np.round(centre - sides / 2).clip(-_FAR, _FAR)
        sides = np.round(sides).clip(1, _FAR)
        return cls(*(int(value) for value in (*corner, *sides)), size)

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
        part = frame[top:bottom, left:right]
        # What is missing above, below, to the left and to the right.
        borders = np.maximum(
            [
                top - self.y,
                self.y + self.height - bottom,
                left - self.x,
                self.x + self.width - right,
            ],
            0,
        )
        if self.width * self.height > _LARGE:
            return self._reduced(part, borders)
        patch = cv2.copyMakeBorder(
            part, *borders.tolist(), cv2.BORDER_REPLICATE
        )[: self.height, : self.width]
        shrinks = self.size < max(self.width, self.height)
        return cv2.resize(
            patch,
            (self.size, self.size),
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )

    def _reduced(self, part: np.ndarray, borders: np.ndarray) -> np.ndarray:
        """The patch of a large region, in the memory of a small one."""
        scale = self.size / np.array([self.height, self.width])
        height, width = np.clip(
            np.round(part.shape[:2] * scale), 1, self.size
        ).astype(int)
        first = np.round(borders[[0, 2]] * scale).astype(int)
        top, left = np.minimum(first, [self.size - height, self.size - width])
        small = cv2.resize(
            part, (int(width), int(height)), interpolation=cv2.INTER_AREA
        )
        return cv2.copyMakeBorder(
            small,
            int(top),
            int(self.size - height - top),
            int(left),
            int(self.size - width - left),
            cv2.BORDER_REPLICATE,
        )
