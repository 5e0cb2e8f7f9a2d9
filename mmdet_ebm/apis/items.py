"""Images on their way through the model, in batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .inputs import Source
from .results import ImageResult

# Images that wait for others of their shape, together.
MAX_BYTES = 2**28


@dataclass
class Item:
    """An image on its way through the model."""

    result: ImageResult
    source: Source
    signature: str
    image: np.ndarray | None = None  # (H, W, 3), BGR
    data: dict | None = None  # for the model, if it is to see the image


@dataclass
class EndOfVideo:
    """All frames of a video have been given out, as far as there are any."""

    source: Source
    signature: str
    num_frames: int
    complete: bool


def batches(
    items: Iterable[Item | EndOfVideo],
    batch_size: int,
    key: Callable[[Item], object],
) -> Iterator[list[Item] | EndOfVideo]:
    """Group items by key, a few waiting at a time.

    All that waits is given out before the end of a video.
    """
    waiting: dict[object, list[Item]] = {}
    for item in items:
        if isinstance(item, EndOfVideo):
            yield from waiting.values()
            waiting = {}
            yield item
            continue
        group = waiting.setdefault(key(item), [])
        group.append(item)
        if len(group) == batch_size or key(item) is None:
            yield waiting.pop(key(item))
        elif _is_crowded(waiting.values(), batch_size):
            yield waiting.pop(max(waiting, key=lambda k: len(waiting[k])))
    yield from waiting.values()


def _is_crowded(groups: Iterable[list[Item]], batch_size: int) -> bool:
    images = [item.image for group in groups for item in group]
    return (
        len(images) >= 4 * batch_size
        or sum(image.nbytes for image in images if image is not None)
        > MAX_BYTES
    )
