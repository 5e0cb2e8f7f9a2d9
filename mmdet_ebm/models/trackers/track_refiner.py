"""Any tracker's boxes, refined."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...tracking import Track, read_frame
from .target_conditional_energy import TargetConditionalEnergy


@dataclass(frozen=True)
class RefinedTrack:
    """What became of a tracker's boxes in T frames.

    Attributes:
        boxes: (T, 4) corners in pixels of the frames, counted from 0.
        std: (T, 4) standard deviations of x1, y1, x2, y2 in pixels; NaN
            where they were not asked for.
        seconds: (T,) that the refinement of each frame took, reading the
            frame not included.
    """

    boxes: np.ndarray
    std: np.ndarray
    seconds: np.ndarray


class TrackRefiner:
    """Refines a tracker's boxes, one frame at a time.

    The refined boxes are an output only: the tracker never sees them, so it
    goes where it would have gone without. Whether its boxes come from a file
    or from a tracker that runs beside makes no difference.

    The first box is the target. It is kept as it is, and it is all that the
    energy model ever knows of the target.

    Args:
        model: In eval mode; its density should have been fitted to the
            tracker, see ``mmdet_ebm.evaluation.fit_tracker``.
        uncertainty: Also tell how sure the sides are.
    """

    def __init__(
        self, model: TargetConditionalEnergy, uncertainty: bool = False
    ) -> None:
        self.model = model
        self.uncertainty = uncertainty

    def init(self, frame: np.ndarray, box: np.ndarray) -> None:
        """Look at the target.

        Args:
            frame: (H, W, 3) BGR uint8.
            box: (4,) its corners.
        """
        self._template = self.model.template(frame, box)

    def update(
        self, frame: np.ndarray, box: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Refine the tracker's box of the next frame.

        Args:
            frame: (H, W, 3) BGR uint8.
            box: (4,) corners.

        Returns:
            (4,) corners and (4,) standard deviations of the sides, which are
            NaN unless asked for. A box that is not known stays so.
        """
        box = np.asarray(box, float)
        unknown = np.full(4, np.nan)
        trusts_f = math.isfinite(self.model.energy_model.density.temperature)
        if not trusts_f or not (box[2:] > box[:2]).all():  # False for NaN
            return box, unknown
        found = self.model.refine(
            frame, self._template, box[None], self.uncertainty
        )
        return found.boxes[0], unknown if found.std is None else found.std[0]

    def track(self, track: Track, boxes: Iterable[np.ndarray]) -> RefinedTrack:
        """Refine the boxes of a whole sequence.

        Args:
            track: Its frames; of its boxes only the first is looked at.
            boxes: T corners (4,) of the tracker, the first frame's included.
        """
        rows, stds, seconds = [], [], []
        for number, (path, box) in enumerate(
            zip(track.frames, boxes, strict=True)
        ):
            frame = read_frame(path)
            start = time.perf_counter()
            std = np.full(4, np.nan)
            if number == 0:
                if frame is None:
                    raise ValueError(f'the first frame {path} is damaged')
                box = track.boxes[0]
                self.init(frame, box)
            elif frame is not None:  # a damaged one leaves nothing to look at
                box, std = self.update(frame, box)
            rows.append(box)
            stds.append(std)
            seconds.append(time.perf_counter() - start)
        return RefinedTrack(np.array(rows), np.array(stds), np.array(seconds))
