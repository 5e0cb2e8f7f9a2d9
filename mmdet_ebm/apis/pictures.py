"""Pictures of a run; those of frames become a video again."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..decoding import frame_rate
from ..visualization import draw_refinement
from .inputs import Source
from .results import to_instances
from .results_folder import ResultsFolder, write_file

_WITHOUT = 'run without pictures (--no-save-vis, no_save_vis=True)'


class PictureWriter:
    """Draws predictions, and writes the pictures that are missing.

    Args:
        folder: Where to write; None writes nothing.
        classes: Names of the labels.
        score_thr: Class score from which boxes are drawn.
        compare: Draw the boxes before the refinement as well.
        always: Draw a picture even if the folder has it.
    """

    def __init__(
        self,
        folder: ResultsFolder | None,
        classes: Sequence[str],
        score_thr: float,
        compare: bool,
        always: bool,
    ) -> None:
        self.folder = folder
        self.classes = classes
        self.score_thr = score_thr
        self.compare = compare
        self.always = always
        # Of the video whose frames are being drawn; videos do not overlap.
        self._video: cv2.VideoWriter | None = None

    @property
    def wanted(self) -> bool:
        """Whether a picture is drawn of each image that was read."""
        return self.always or self.folder is not None

    @property
    def settings(self) -> str:
        """Text that is noted with a picture; it changes when pictures do."""
        return f'pred_score_thr={self.score_thr:g} compare={self.compare}'

    @property
    def legend(self) -> str:
        """What the pictures show, for their reader."""
        before = ', before it dashed' if self.compare else ''
        return (
            f'Boxes after refinement solid{before}; scores from '
            f'{self.score_thr:g} on.'
        )

    def needs(self, source: Source) -> bool:
        """Whether a finished source must be read again for its picture."""
        if self.always or self.folder is None:
            return self.always
        file = self.folder.picture_file(source.name, source.is_video)
        drawn = self.folder.details(source.name).get('picture')
        return drawn != self.settings or not os.path.exists(file)

    def draw(
        self, source: Source, image: np.ndarray, prediction: dict
    ) -> np.ndarray:
        """Draw a prediction, and write the picture if there is a folder.

        Args:
            source: The image, or the video that it is a frame of.
            image: (H, W, 3) uint8 BGR.
            prediction: See ``to_prediction``.

        Returns:
            The picture (H', W', 3), uint8 RGB.
        """
        # Detections below the threshold are left out before their masks are
        # decoded.
        rows = [
            row
            for row, score in enumerate(prediction['scores'])
            if score >= self.score_thr
        ]
        shown = {
            name: [values[row] for row in rows]
            for name, values in prediction.items()
        }
        picture = draw_refinement(
            np.ascontiguousarray(image[..., ::-1]),
            to_instances(shown),
            self.classes,
            score_thr=self.score_thr,
            compare=self.compare,
        )
        if self.folder is not None:
            written = np.ascontiguousarray(picture[..., ::-1])
            if source.is_video:
                self._write_frame(source, written)
            else:
                self.folder.forget_picture(source.name)
                write_file(
                    self.folder.picture_file(source.name), _jpeg(written)
                )
        return picture

    def close(self, source: Source) -> None:
        """Finish a video after its last frame."""
        if self._video is not None:
            self._video.release()
            self._video = None
            file = self.folder.picture_file(source.name, video=True)
            # On the disk before it takes the place of another.
            with _partial(file).open('rb') as written:
                os.fsync(written.fileno())
            self.folder.forget_picture(source.name)
            os.replace(_partial(file), file)

    def _write_frame(self, source: Source, picture: np.ndarray) -> None:
        """Append a picture (H, W, 3), BGR, to the video of a source."""
        if self._video is None:
            file = self.folder.picture_file(source.name, video=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            height, width = picture.shape[:2]
            video = cv2.VideoWriter(
                str(_partial(file)),
                cv2.VideoWriter_fourcc(*'mp4v'),
                frame_rate(source.content),
                (width, height),
            )
            if not video.isOpened():
                raise OSError(
                    errno.EINVAL,
                    f'OpenCV cannot write {file} (MPEG-4); {_WITHOUT}',
                )
            self._video = video
        self._video.write(picture)


def _jpeg(picture: np.ndarray) -> bytes:
    done, data = cv2.imencode('.jpg', picture)
    if not done:
        height, width = picture.shape[:2]
        raise OSError(
            errno.EINVAL, f'no JPEG of {width} x {height} pixels; {_WITHOUT}'
        )
    return data.tobytes()


def _partial(file: Path) -> Path:
    """The name of an unfinished video; OpenCV needs its suffix."""
    return file.with_suffix('.part.mp4')
