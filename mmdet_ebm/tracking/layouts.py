"""Where the public benchmarks keep frames and boxes.

Each layout is a function from a root folder to pairs of a name and a function
that reads the track. Whether files count pixels from 0 or 1, and how they
mark absent targets, is known here and nowhere else.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..decoding import read_image
from .text import read_boxes
from .tracks import DamagedTrack, Track

Reader = Callable[[], Track]
Layout = Callable[[Path], Iterator[tuple[str, Reader]]]

_SUFFIXES = frozenset({'.jpg', '.jpeg', '.png', '.bmp'})
# OTB's David has frames before the first box.
_OTB_FIRST_FRAMES = MappingProxyType({'David': 300})


def find_tracks(
    root: str | Path, layout: str, names: Sequence[str] | None = None
) -> list[Track]:
    """All tracks below a folder that can be used.

    A damaged sequence is named in a warning, with the reason, and left out.

    Args:
        root: Of the benchmark, or of one split of it.
        layout: A key of ``LAYOUTS``.
        names: Only these sequences, in this order.

    Raises:
        ValueError: If the layout is unknown, a name is not there, or nothing
            can be used.
    """
    if layout not in LAYOUTS:
        raise ValueError(
            f'layout must be one of {", ".join(LAYOUTS)}, got {layout!r}'
        )
    readers = dict(LAYOUTS[layout](Path(root)))
    missing = sorted(set(names or ()) - set(readers))
    if missing:
        raise ValueError(
            f'{root} has no sequence {", ".join(missing)} in the layout '
            f'{layout}'
        )
    tracks = []
    for name in readers if names is None else names:
        try:
            tracks.append(readers[name]())
        except (DamagedTrack, OSError, ValueError) as error:
            warnings.warn(f'left out: {name}: {error}', stacklevel=2)
    if not tracks:
        raise ValueError(
            f'{root} has no sequence in the layout {layout} that can be used'
        )
    return tracks


def _otb(root: Path) -> Iterator[tuple[str, Reader]]:
    """NAME/img/0001.jpg, NAME/groundtruth_rect.txt, counted from 1.

    Videos of several targets have groundtruth_rect.1.txt and so on.
    """
    for folder in _folders(root):
        for file in sorted(folder.glob('groundtruth_rect*.txt')):
            target = file.stem.removeprefix('groundtruth_rect')
            name = folder.name + target.replace('.', '-')

            def read(folder=folder, file=file, name=name) -> Track:
                boxes = read_boxes(file, 1)
                frames = _frames(folder / 'img')
                first = _OTB_FIRST_FRAMES.get(folder.name, 0)
                frames = [f for f in frames if _number(f) >= first]
                # As the toolkit: frames after the last box are left out.
                return Track(name, tuple(frames[: len(boxes)]), boxes)

            yield name, read


def _lasot(root: Path) -> Iterator[tuple[str, Reader]]:
    """[CLASS/]CLASS-N/img/*.jpg, groundtruth.txt, counted from 1.

    full_occlusion.txt and out_of_view.txt have a flag for each frame.
    """
    for file in sorted(
        {*root.glob('*/groundtruth.txt')} | {*root.glob('*/*/groundtruth.txt')}
    ):
        folder = file.parent

        def read(folder=folder, file=file) -> Track:
            boxes = read_boxes(file, 1)
            for flags in ('full_occlusion', 'out_of_view'):
                _remove_absent(boxes, folder / f'{flags}.txt')
            return Track(folder.name, _frames(folder / 'img'), boxes)

        yield folder.name, read


def _got10k(root: Path) -> Iterator[tuple[str, Reader]]:
    """NAME/*.jpg, groundtruth.txt, absence.label, counted from 1."""
    for folder in _folders(root):

        def read(folder=folder) -> Track:
            boxes = read_boxes(folder / 'groundtruth.txt', 1)
            _remove_absent(boxes, folder / 'absence.label')
            return Track(folder.name, _frames(folder), boxes)

        yield folder.name, read


def _trackingnet(root: Path) -> Iterator[tuple[str, Reader]]:
    """frames/NAME/0.jpg, anno/NAME.txt, counted from 0."""
    for file in sorted((root / 'anno').glob('*.txt')):

        def read(file=file) -> Track:
            return Track(
                file.stem,
                _frames(root / 'frames' / file.stem),
                read_boxes(file, 0),
            )

        yield file.stem, read


def _uav123(root: Path) -> Iterator[tuple[str, Reader]]:
    """data_seq/UAV123/NAME/*.jpg, anno/UAV123/NAME.txt, counted from 1.

    Absent boxes are NaN. A target that is only part of a video has no folder
    of its own; the frames of such a part are told in a MATLAB file, which is
    not read.
    """
    for file in sorted((root / 'anno' / 'UAV123').glob('*.txt')):

        def read(file=file) -> Track:
            return Track(
                file.stem,
                _frames(root / 'data_seq' / 'UAV123' / file.stem),
                read_boxes(file, 1),
            )

        yield file.stem, read


def _davis(root: Path) -> Iterator[tuple[str, Reader]]:
    """JPEGImages/480p/NAME/*.jpg, Annotations/480p/NAME/*.png: masks.

    A box is the extent of the foreground, of all objects together.
    """
    for folder in _folders(root / 'Annotations' / '480p'):

        def read(folder=folder) -> Track:
            boxes = [_extent(file) for file in _frames(folder)]
            return Track(
                folder.name,
                _frames(root / 'JPEGImages' / '480p' / folder.name),
                np.array(boxes).reshape(-1, 4),
            )

        yield folder.name, read


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    dict(
        otb=_otb,
        lasot=_lasot,
        got10k=_got10k,
        trackingnet=_trackingnet,
        uav123=_uav123,
        davis=_davis,
    )
)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir())


def _frames(folder: Path) -> tuple[Path, ...]:
    files = (f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES)
    return tuple(sorted(files, key=lambda f: (_number(f), f.name)))


def _number(file: Path) -> int:
    digits = re.findall(r'\d+', file.stem)
    return int(digits[-1]) if digits else 0


def _remove_absent(boxes: np.ndarray, file: Path) -> None:
    """NaN for the boxes (T, 4) that a file of T flags calls absent."""
    if not file.exists():
        return
    flags = re.findall(r'\d+', file.read_text())
    if len(flags) != len(boxes):
        raise DamagedTrack(
            f'{file} has {len(flags)} flags for {len(boxes)} boxes'
        )
    boxes[[flag != '0' for flag in flags]] = np.nan


def _extent(file: Path) -> np.ndarray:
    """(4,) corners of a mask; NaN for an empty one."""
    # Colours of a palette say which object it is; 0 is the background.
    mask = read_image(file).max(2)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.full(4, np.nan)
    return np.array(
        [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float
    )
