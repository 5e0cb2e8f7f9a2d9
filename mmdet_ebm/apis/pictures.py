"""Pictures of a run, and the videos that frames become again."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np

from ..visualization import draw_refinement
from .inputs import Source, frame_rate
from .results import to_instances
from .store import ResultStore


class PictureWriter:
    """Draws predictions, and writes what is not there yet.

    Args:
        store: Where to write; None writes nothing.
        classes: Names of the labels.
        score_thr: Class score from which boxes are drawn.
        compare: Draw the boxes before the refinement as well.
        always: Draw whatever is there.
    """

    def __init__(
        self,
        store: ResultStore | None,
        classes: Sequence[str],
        score_thr: float,
        compare: bool,
        always: bool,
    ) -> None:
        self.store = store
        self.classes = classes
        self.score_thr = score_thr
        self.compare = compare
        self.always = always
        self._videos: dict[str, cv2.VideoWriter] = {}

    @property
    def wanted(self) -> bool:
        return self.always or self.store is not None

    @property
    def settings(self) -> str:
        return f'pred_score_thr={self.score_thr:g} compare={self.compare}'

    @property
    def legend(self) -> str:
        before = ', before it dashed' if self.compare else ''
        return (
            f'Boxes after refinement solid{before}; class scores from '
            f'{self.score_thr:g} on.'
        )

    def needs(self, source: Source) -> bool:
        """Whether a source must be read for its picture."""
        if self.always or self.store is None:
            return self.always
        file = self.store.picture_file(source.name, source.is_video)
        drawn = self.store.details(source.name).get('picture')
        return drawn != self.settings or not file.exists()

    def draw(
        self, source: Source, image: np.ndarray, prediction: dict
    ) -> np.ndarray:
        """Picture (H', W', 3), RGB, of an image, BGR; written as asked."""
        # Masks of the others need not be decoded.
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
        if self.store is not None:
            if source.is_video:
                self._video(source, picture).write(picture[..., ::-1].copy())
            else:
                mmcv.imwrite(
                    picture[..., ::-1],
                    str(self.store.picture_file(source.name)),
                )
        return picture

    def close(self, source: Source) -> None:
        """A video's last frame has been drawn."""
        writer = self._videos.pop(source.name, None)
        if writer is not None:
            writer.release()
            file = self.store.picture_file(source.name, video=True)
            os.replace(_partial(file), file)

    def _video(self, source: Source, picture: np.ndarray) -> cv2.VideoWriter:
        if source.name not in self._videos:
            file = self.store.picture_file(source.name, video=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            height, width = picture.shape[:2]
            writer = cv2.VideoWriter(
                str(_partial(file)),
                cv2.VideoWriter_fourcc(*'mp4v'),
                frame_rate(source.content),
                (width, height),
            )
            if not writer.isOpened():
                raise RuntimeError(
                    f'OpenCV cannot write {file} (MPEG-4); run without '
                    'pictures (--no-save-vis, no_save_vis=True)'
                )
            self._videos[source.name] = writer
        return self._videos[source.name]


def _partial(file: Path) -> Path:
    return file.with_suffix('.part.mp4')
