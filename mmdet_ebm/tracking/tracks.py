"""One target in one video."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..decoding import UnreadableInput, read_image


class DamagedTrack(ValueError):
    """A sequence that cannot be used; the message says why."""


@dataclass(frozen=True)
class Track:
    """The box of one target in each frame of a video.

    Attributes:
        name: Of the sequence.
        frames: T image files, in order.
        boxes: (T, 4) corners, NaN where the target is absent.
    """

    name: str
    frames: tuple[Path, ...]
    boxes: np.ndarray

    def __post_init__(self) -> None:
        if not self.frames:
            raise DamagedTrack(f'{self.name}: there are no frames')
        if self.boxes.shape != (len(self.frames), 4):
            raise DamagedTrack(
                f'{self.name}: {len(self.frames)} frames and '
                f'{len(self.boxes)} boxes'
            )
        if not np.isfinite(self.boxes[0]).all():
            raise DamagedTrack(
                f'{self.name}: the first frame has no box to start from'
            )

    @property
    def present(self) -> np.ndarray:
        """(T,) whether the target is there."""
        return np.isfinite(self.boxes).all(1)


def read_frame(path: str | Path) -> np.ndarray | None:
    """A frame (H, W, 3) BGR uint8; None if the file is damaged."""
    try:
        return read_image(Path(path))
    except UnreadableInput:
        return None
