"""OpenCV's trackers behind one interface."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from .tracks import Track, read_frame

NANO_BACKBONE = 'nanotrack_backbone_sim.onnx'
NANO_HEAD = 'nanotrack_head_sim.onnx'
VIT = 'object_tracking_vittrack_2023sep.onnx'


def _csrt(weights: Path) -> Any:
    return cv2.TrackerCSRT_create()


def _nano(weights: Path) -> Any:
    params = cv2.TrackerNano_Params()
    params.backbone = str(weights / NANO_BACKBONE)
    params.neckhead = str(weights / NANO_HEAD)
    return cv2.TrackerNano_create(params)


def _vit(weights: Path) -> Any:
    params = cv2.TrackerVit_Params()
    params.net = str(weights / VIT)
    return cv2.TrackerVit_create(params)


OPENCV_TRACKERS: Mapping[str, Callable[[Path], Any]] = MappingProxyType(
    dict(CSRT=_csrt, NanoTrack=_nano, VitTrack=_vit)
)


class OpenCVTracker:
    """One of OpenCV's trackers; it needs opencv-contrib-python.

    Args:
        name: A key of ``OPENCV_TRACKERS``.
        weights: Folder with the networks of NanoTrack and VitTrack.

    Raises:
        ValueError: If the name is unknown, OpenCV has no such tracker, or its
            network is not there.
    """

    def __init__(self, name: str, weights: str | Path = '.') -> None:
        if name not in OPENCV_TRACKERS:
            raise ValueError(
                f'expected one of {", ".join(OPENCV_TRACKERS)}, got {name!r}'
            )
        self.name = name
        self._make = lambda: OPENCV_TRACKERS[name](Path(weights))
        try:
            self._tracker = self._make()
        except AttributeError as error:
            raise ValueError(
                f'OpenCV {cv2.__version__} has no {name}: {error}. Install '
                'opencv-contrib-python'
            ) from error
        except cv2.error as error:
            raise ValueError(
                f'OpenCV cannot start {name} from the weights in {weights}: '
                f'{error}'
            ) from error

    def init(self, frame: np.ndarray, box: np.ndarray) -> None:
        """Start anew.

        Args:
            frame: (H, W, 3) BGR uint8.
            box: (4,) corners.
        """
        self._tracker = self._make()
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        self._tracker.init(frame, (x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)))
        self._last = np.asarray(box, float)

    def update(self, frame: np.ndarray) -> np.ndarray:
        """(4,) corners in the next frame; the last ones where it gives up."""
        found, (x, y, w, h) = self._tracker.update(frame)
        if found and w > 0 and h > 0:
            self._last = np.array([x, y, x + w, y + h], float)
        return self._last.copy()

    def run(self, track: Track) -> np.ndarray:
        """(T, 4) corners in a sequence; only its first box is looked at."""
        boxes = [track.boxes[0]]
        self.init(read_frame(track.frames[0]), boxes[0])
        for path in track.frames[1:]:
            frame = read_frame(path)
            boxes.append(boxes[-1] if frame is None else self.update(frame))
        return np.array(boxes)
