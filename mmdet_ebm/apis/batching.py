"""Images that wait for the model, grouped into batches."""

import math
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .inputs import Source
from .results import ImageResult

# Most bytes of images that wait for others of their shape.
MAX_BYTES = 2**28


@dataclass
class PendingImage:
    """An image between its file and its result.

    Attributes:
        result: Is filled in on the way.
        source: The image, or the video that it is a frame of.
        signature: Changes when the source's content does.
        image: (H, W, 3) uint8 BGR; None if it need not be read.
        data: Output of the test pipeline; None if the model need not see it.
    """

    result: ImageResult
    source: Source
    signature: str
    image: np.ndarray | None = None
    data: dict | None = None

    def batch_key(self, divisor: int) -> Hashable:
        """Images with equal keys may share a batch; None shares with none.

        In a batch, a smaller image would get more padding than alone, and
        padding changes features. So the padded sizes must be equal. Frames of
        a video must stay in order, and they all have one size.

        Args:
            divisor: The model pads sides to multiples of it.
        """
        if self.source.is_video:
            return self.source.name
        if self.data is None:
            return None
        return tuple(
            math.ceil(side / divisor)
            for side in self.data['inputs'].shape[-2:]
        )


@dataclass
class EndOfVideo:
    """Comes after the last frame of a video that could be read."""

    source: Source
    signature: str
    num_frames: int
    complete: bool


def group_into_batches(
    images: Iterable[PendingImage | EndOfVideo],
    batch_size: int,
    divisor: int = 1,
) -> Iterator[list[PendingImage] | EndOfVideo]:
    """Yield batches of images that may be put together.

    A limited number of images waits for others. None waits beyond the end of
    a video, which is passed on.

    Args:
        images: In the order of the inputs.
        batch_size: Most images in a batch.
        divisor: See :meth:`PendingImage.batch_key`.
    """
    waiting: dict[Hashable, list[PendingImage]] = {}
    for image in images:
        if isinstance(image, EndOfVideo):
            yield from waiting.values()
            waiting = {}
            yield image
            continue
        key = image.batch_key(divisor)
        group = waiting.setdefault(key, [])
        group.append(image)
        if len(group) == batch_size or key is None:
            yield waiting.pop(key)
        elif _is_crowded(waiting.values(), batch_size):
            yield waiting.pop(max(waiting, key=lambda k: len(waiting[k])))
    yield from waiting.values()


def _is_crowded(groups: Iterable[list[PendingImage]], batch_size: int) -> bool:
    images = [pending.image for group in groups for pending in group]
    num_bytes = sum(image.nbytes for image in images if image is not None)
    return len(images) >= 4 * batch_size or num_bytes > MAX_BYTES
