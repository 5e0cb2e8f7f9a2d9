"""Inputs of a run: images, arrays, folders, patterns and videos."""

import glob
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from PIL import Image

VIDEO_SUFFIXES = (
    '.mp4',
    '.avi',
    '.mov',
    '.mkv',
    '.webm',
    '.m4v',
    '.mpg',
    '.mpeg',
    '.wmv',
)
SUFFIXES = IMG_EXTENSIONS + VIDEO_SUFFIXES
# Larger images are skipped. Decoded, they would take over 400 MB, and a
# pipeline takes several times that.
MAX_PIXELS = 2**27
# Largest file that is read: all those pixels with four channels of 16 bits.
MAX_BYTES = 8 * MAX_PIXELS
# What both Pillow, which tells the size, and OpenCV can read. Each has a mark
# of its own at the beginning, so that both see the same format.
FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')

InputType = str | Path | np.ndarray
InputsType = InputType | Sequence[InputType]


class UnreadableInput(ValueError):
    """An image or video cannot be read, or not all of it; says why."""


@dataclass(frozen=True)
class Source:
    """One image or video.

    Attributes:
        name: Name of its results: the path below the folder that all inputs
            have in common, with the suffix, so that no two are equal.
        content: Path, or the image itself.
    """

    name: str
    content: Path | np.ndarray

    @property
    def path(self) -> str | None:
        return (
            None if isinstance(self.content, np.ndarray) else str(self.content)
        )

    @property
    def is_video(self) -> bool:
        return (
            isinstance(self.content, Path)
            and self.content.suffix.lower() in VIDEO_SUFFIXES
        )

    def signature(self) -> str:
        """Text that changes when the content does."""
        if isinstance(self.content, np.ndarray):
            array = np.ascontiguousarray(self.content)
            digest = hashlib.sha1(array.tobytes()).hexdigest()
            return f'{array.dtype} {array.shape} {digest}'
        try:
            status = self.content.stat()
        except OSError:
            return 'unreadable'
        return f'{status.st_size} {status.st_mtime_ns}'


def expand_inputs(
    inputs: InputsType,
    recursive: bool = False,
    first_array: int = 0,
    exclude: str | Path = '',
) -> list[Source]:
    """List the images and videos of inputs, each with a name.

    A folder stands for the images and videos in it, in the order of their
    names. A pattern such as ``data/*/x.jpg`` stands for the files that match
    it; ``**`` matches any folders. What exists is no pattern, whatever its
    name. A file may have any suffix. A file that is named twice is taken
    once.

    Args:
        inputs: One of, or a list of: path of an image, video or folder,
            pattern, image array (see :func:`read_image`).
        recursive: Look into subfolders of folders.
        first_array: Number of the first array; arrays are named by number.
        exclude: Folder of the results, of which nothing is taken.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder or pattern
            yields nothing.
        TypeError: If an input is something else.
    """
    if isinstance(inputs, (str, Path, np.ndarray)):
        inputs = [inputs]
    contents, roots = [], []
    for entry in inputs:
        if isinstance(entry, np.ndarray):
            contents.append(entry)
        elif isinstance(entry, (str, Path)):
            root, found = _files(entry, recursive, exclude)
            roots.append(root)
            contents += found
        else:
            raise TypeError(
                'inputs must be paths, patterns or image arrays '
                f'(H, W, 3), got {type(entry).__name__}'
            )
    common = os.path.commonpath(roots) if roots else ''
    sources, seen = [], set()
    for content in contents:
        if isinstance(content, np.ndarray):
            name = f'{first_array:08d}'
            first_array += 1
        else:
            name = Path(os.path.relpath(content, common)).as_posix()
            if name in seen:
                continue
            seen.add(name)
        sources.append(Source(name, content))
    return sources


def _files(
    entry: str | Path, recursive: bool, exclude: str | Path
) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files below it."""
    path = Path(os.path.abspath(entry))
    # Links may lead from the inputs into the results.
    excluded = Path(exclude).resolve() if exclude else None

    @cache
    def is_excluded(folder: Path) -> bool:
        folder = folder.resolve()
        return excluded in (folder, *folder.parents)

    if path.is_dir():
        # Broken links are kept, so that they are reported by name.
        found = sorted(
            file
            for file in path.glob('**/*' if recursive else '*')
            if file.suffix.lower() in SUFFIXES
            and not is_excluded(file.parent)
            and not file.is_dir()
        )
        if not found:
            raise FileNotFoundError(
                f'no image or video in the folder {entry} (looked for '
                f'{", ".join(SUFFIXES)}'
                f'{"" if recursive else "; not in its subfolders"})'
            )
        return path, found
    if path.exists() or path.is_symlink():
        return path.parent, [path]
    if glob.has_magic(str(entry)):
        # What exists is a name, not a pattern: photos/[2024]/*.jpg
        fixed = next(parent for parent in path.parents if parent.exists())
        pattern = str(path.relative_to(fixed))
        found = [
            fixed / match
            for match in sorted(
                glob.glob(pattern, root_dir=fixed, recursive=True)
            )
            if not is_excluded((fixed / match).parent)
            and not (fixed / match).is_dir()
        ]
        if not found:
            raise FileNotFoundError(f'no file matches {entry}')
        return fixed, found
    raise FileNotFoundError(f'no file or folder {entry}')


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
        with _quiet_opencv():
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
    capture, promised = _open_video(path)
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


def count_frames(source: Source) -> int:
    """Images in a source: 1, or about the frames of a video (1 if none)."""
    if not source.is_video:
        return 1
    try:
        return max(1, _open_video(source.content)[1])
    except UnreadableInput:
        return 1


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


def _open_video(path: Path) -> tuple[cv2.VideoCapture, int]:
    _require_file(path)
    try:
        with _quiet_opencv():
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
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing errors that are reported by name anyway."""
    log = getattr(cv2.utils, 'logging', cv2)  # the second in some of OpenCV 4
    level = log.getLogLevel()
    log.setLogLevel(_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)
