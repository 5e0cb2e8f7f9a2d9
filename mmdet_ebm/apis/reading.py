"""From inputs to images that are ready for the model."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..decoding import UnreadableInput, read_frames, read_image
from .batching import EndOfVideo, PendingImage
from .inputs import Source
from .pictures import PictureWriter
from .results import ImageResult
from .results_folder import ResultsFolder, frame_name


class InputReader:
    """Reads images and frames, except those that are finished already.

    Args:
        pipeline: Turns ``img``, ``img_id`` and ``img_path`` into the model's
            input: the test pipeline without the step that reads a file.
        folder: Results of earlier runs; None without any.
        pictures: Says which finished images are needed for a picture.
    """

    def __init__(
        self,
        pipeline: Callable[[dict], dict],
        folder: ResultsFolder | None,
        pictures: PictureWriter,
    ) -> None:
        self.pipeline = pipeline
        self.folder = folder
        self.pictures = pictures

    def read(
        self, sources: Sequence[Source]
    ) -> Iterator[PendingImage | EndOfVideo]:
        """Yield images and frames in order; an error stays with its image."""
        index = 0
        for source in sources:
            read = self._read_video if source.is_video else self._read_image
            for image in read(source, source.signature()):
                if isinstance(image, PendingImage):
                    image.result.index = index
                    index += 1
                yield image

    def _read_image(
        self, source: Source, signature: str
    ) -> Iterator[PendingImage]:
        pending = self._pending(source.name, source, signature)
        if not pending.result.kept or self.pictures.needs(source):
            try:
                self._prepare(pending, read_image(source.content))
            except UnreadableInput as error:
                pending.result.error = str(error)
        yield pending

    def _read_video(
        self, source: Source, signature: str
    ) -> Iterator[PendingImage | EndOfVideo]:
        def frame(number: int) -> PendingImage:
            name = frame_name(source.name, number)
            return self._pending(name, source, signature)

        if self.folder is not None and not self.pictures.needs(source):
            finished = self.folder.num_frames(source.name, signature)
            if finished:
                yield from map(frame, range(finished))
                return
        number, complete = 0, True
        try:
            for image in read_frames(source.content):
                pending = frame(number)
                self._prepare(pending, image)
                number += 1
                yield pending
        except UnreadableInput as error:
            complete = False
            result = ImageResult(source.name, error=str(error))
            yield PendingImage(result, source, signature)
        yield EndOfVideo(source, signature, number, complete)

    def _pending(
        self, name: str, source: Source, signature: str
    ) -> PendingImage:
        result = ImageResult(name)
        if self.folder is not None:
            result.prediction = self.folder.finished(name, signature)
            result.kept = result.prediction is not None
        return PendingImage(result, source, signature)

    def _prepare(self, pending: PendingImage, image: np.ndarray) -> None:
        """Attach an image, and the model's input if there is no result."""
        pending.image = image
        if pending.result.kept:
            return
        try:
            pending.data = self.pipeline(
                dict(img=image, img_id=0, img_path=pending.source.path)
            )
        except Exception as error:
            reason = ' '.join(str(error).split())
            pending.result.error = (
                f'the test pipeline failed on its {image.shape[1]} x '
                f'{image.shape[0]} pixels: {type(error).__name__}: {reason}'
            )
