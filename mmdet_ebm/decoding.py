"""Decode image and video files of strangers, or say why not.

A small file can claim a size that fills the memory, and a name that ends in
.jpg can be a pipe. Needs neither torch nor mmdet.
"""

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# Larger images are skipped. Decoded, they would take over 400 MB, and a
# pipeline takes several times that.
MAX_PIXELS = 2**27
# Largest file that is read: all those pixels with four channels of 16 bits.
MAX_BYTES = 8 * MAX_PIXELS
# What both Pillow, which tells the size, and OpenCV can read. Each has a mark
# of its own at the beginning, so that both see the same format.
FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')


class UnreadableInput(ValueError):
    """An image or video cannot be read, or not all of it; says why."""


def read_image(content: Path | np.ndarray) -> np.ndarray:
    """Read an image as mmdet's loaders do: (H, W, 3) uint8, BGR.

    OpenCV decodes files, as in training. It turns them as their EXIF data
    say, repeats grey three times, drops alpha and keeps the upper 8 of 16
    bits. Arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or uint16
    are converted in the same way.

    Raises:
        UnreadableInput: If the image or a part of it cannot be read.
    """
    if isinstance(content, np.ndarray):
        return _three_channels(content)
    data = _read_bytes(content)
    complaint = _complaint(data)
    if complaint:
        raise UnreadableInput(complaint)
    try:
        with quiet_opencv():
            image = cv2.imdecode(
                np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR
            )
    except cv2.error as error:
        raise UnreadableInput(f'OpenCV cannot decode it: {error}') from error
    if image is None:
        raise UnreadableInput('not an image that OpenCV can decode')
    return image


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video, (H, W, 3) uint8 BGR.

    Raises:
        UnreadableInput: If the video cannot be opened, or, after its last
            readable frame, if more than a tenth of the frames is missing.
            Videos only estimate how many frames they have.
    """
    capture, promised = open_video(path)
    count = 0
    try:
        while (frame := capture.read()[1]) is not None:
            count += 1
            yield frame
    finally:
        capture.release()
    if count < 0.9 * promised or count == 0:
        raise UnreadableInput(
            f'{count} of {promised} frames could be read; the video is '
            'truncated or damaged'
        )


def frame_rate(path: Path) -> float:
    """Frames per second of a video; 25 where it does not say."""
    rate = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
    return rate if rate and 0 < rate < 1000 else 25.0


def _require_file(path: Path) -> int:
    """Bytes of a regular file; anything else may have no end."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', error)
        raise UnreadableInput(f'cannot be opened: {reason}') from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableInput('not a regular file')
    if not status.st_size:
        raise UnreadableInput('the file is empty')
    return status.st_size


def _read_bytes(path: Path) -> bytes:
    size = _require_file(path)
    if size > MAX_BYTES:
        raise UnreadableInput(
            f'it has {size} bytes, over {MAX_BYTES}, too many for an image'
        )
    try:
        with path.open('rb') as file:
            return file.read(MAX_BYTES)
    except MemoryError as error:
        raise UnreadableInput(f'out of memory at {size} bytes') from error
    except OSError as error:
        raise UnreadableInput(f'cannot be opened: {error.strerror}') from error


def open_video(path: Path) -> tuple[cv2.VideoCapture, int]:
    """A video, and about how many frames it has.

    Raises:
        UnreadableInput: If it cannot be opened.
    """
    _require_file(path)
    try:
        with quiet_opencv():
            capture = cv2.VideoCapture(str(path))
    except (cv2.error, UnicodeError) as error:
        raise UnreadableInput(f'OpenCV cannot open it: {error}') from error
    if not capture.isOpened():
        raise UnreadableInput('not a video that OpenCV can open')
    width, height, count = (
        int(capture.get(name))
        for name in (
            cv2.CAP_PROP_FRAME_WIDTH,
            cv2.CAP_PROP_FRAME_HEIGHT,
            cv2.CAP_PROP_FRAME_COUNT,
        )
    )
    if width * height > MAX_PIXELS:
        raise UnreadableInput(_TOO_LARGE)
    return capture, count


def _three_channels(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 2:
        array = array[..., None]
    if (
        array.dtype != np.uint8
        or array.ndim != 3
        or array.shape[2] not in (1, 3, 4)
        or 0 in array.shape
    ):
        raise UnreadableInput(
            'an array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of '
            f'uint8 or uint16 and not empty; got {array.shape} of '
            f'{array.dtype}'
        )
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    return np.ascontiguousarray(array[..., :3])


_TOO_LARGE = (
    f'it has over {MAX_PIXELS} pixels, too many to decode; cut it into tiles'
)


def _complaint(data: bytes) -> str | None:
    """Why image data should not be decoded; None if nothing is wrong.

    OpenCV 4 fills the missing part of a truncated JPEG with grey and gives no
    error. Pillow gives one, at a fraction of the cost of decoding.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    return _TOO_LARGE
                image.draft(None, (1, 1))
                image.load()
        except Image.DecompressionBombError:
            return _TOO_LARGE
        except Image.UnidentifiedImageError:
            return f'not an image of a known format ({", ".join(FORMATS)})'
        except Exception as error:
            # OpenCV may read more kinds of these formats than Pillow.
            if 'truncated' in str(error):
                return str(error)
    return None


# OpenCV's LOG_LEVEL_SILENT, which not every version names.
_SILENT = 0


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing errors that are reported by name anyway."""
    log = getattr(cv2.utils, 'logging', cv2)  # the second in some of OpenCV 4
    level = log.getLogLevel()
    log.setLogLevel(_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)
