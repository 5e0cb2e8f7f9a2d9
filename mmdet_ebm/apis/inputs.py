"""Inputs of a run: images, arrays, folders, patterns and videos."""

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from mmdet.apis.det_inferencer import IMG_EXTENSIONS

from ..decoding import UnreadableInput, open_video

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
InputType = str | Path | np.ndarray
InputsType = InputType | Sequence[InputType]


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


def count_frames(source: Source) -> int:
    """Images in a source: 1, or about the frames of a video (1 if none)."""
    if not source.is_video:
        return 1
    try:
        return max(1, open_video(source.content)[1])
    except UnreadableInput:
        return 1
