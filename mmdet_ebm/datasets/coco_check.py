"""Check that a COCO folder is complete, before a long training."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmdet.datasets import CocoDataset
from PIL import Image
from tqdm.contrib.concurrent import thread_map

# Images and annotations of the official files of 2017.
COUNTS = dict(train=(118287, 860001), val=(5000, 36781))
# The ids of the 80 classes, in the order of their names in mmdet.
_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _UNUSED_IDS)


@dataclass
class SplitReport:
    """Findings in a split.

    Attributes:
        facts: Counts, for the reader.
        errors: Faults that stop a training or falsify its figures.
        warnings: Faults that may be intended.
    """

    facts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add_error(self, what: str, cases: Sequence[object]) -> None:
        """Report an error and its first cases, if there are any."""
        _add(self.errors, what, cases)

    def add_warning(self, what: str, cases: Sequence[object]) -> None:
        """Report a warning and its first cases, if there are any."""
        _add(self.warnings, what, cases)


def _add(lines: list[str], what: str, cases: Sequence[object]) -> None:
    if cases:
        more = f' and {len(cases) - 3:,} more' if len(cases) > 3 else ''
        first = ', '.join(map(str, cases[:3]))
        lines.append(f'{what} ({len(cases):,}): {first}{more}')


def check_coco_split(
    root: Path,
    split: str,
    num_images: int | None = 200,
    subset: bool = False,
) -> SplitReport:
    """Compare a split with the official one of 2017.

    Args:
        root: Folder with ``annotations/instances_<split>2017.json`` and
            ``<split>2017/``.
        split: 'train' or 'val'.
        num_images: Images to decode, a random choice that is always the
            same; None decodes all.
        subset: The folder holds a part of COCO, so counts may differ.
    """
    report = SplitReport()
    path = Path(root) / f'annotations/instances_{split}2017.json'
    folder = Path(root) / f'{split}2017'
    content = _read(path, report)
    if content is None:
        return report
    images, annotations = content['images'], content['annotations']
    report.facts.append(
        f'{len(images):,} images and {len(annotations):,} '
        f'annotations in {path}'
    )
    if (len(images), len(annotations)) != COUNTS[split]:
        official = 'the official file has {:,} images and {:,} annotations'
        official = official.format(*COUNTS[split])
        if subset:
            report.warnings.append(official)
        else:
            report.errors.append(f'{official}; --subset accepts a part of it')
    _check_categories(content['categories'], report)
    _check_annotations(images, annotations, report)
    _check_images(folder, images, num_images, report)
    return report


def read_coco(path: Path) -> dict:
    """The content of a COCO annotation file.

    Raises:
        ValueError: If it is no JSON file, or lacks a list of images,
            annotations or categories. Their entries are not checked.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f'{path} is no JSON file, or is cut off: {error}'
        ) from error
    needed = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in needed
    ):
        raise ValueError(
            f'{path} must hold lists of {", ".join(needed)}; '
            'is it a file of annotations of objects?'
        )
    return content


def _read(path: Path, report: SplitReport) -> dict | None:
    if not path.is_file():
        report.errors.append(f'there is no {path}')
        return None
    try:
        content = read_coco(path)
    except ValueError as error:
        report.errors.append(str(error))
        return None
    for key, needed_fields in _FIELDS.items():
        entries = content[key]
        content[key] = [e for e in entries if _has(e, needed_fields)]
        report.add_error(
            f'{key} without a valid {", ".join(needed_fields)}',
            [str(e)[:60] for e in entries if not _has(e, needed_fields)],
        )
    return content


def _has(entry: object, fields: dict[str, Callable]) -> bool:
    return isinstance(entry, dict) and all(
        is_valid(entry.get(name)) for name, is_valid in fields.items()
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(map(_is_number, value))
    )


_FIELDS: dict[str, dict[str, Callable]] = dict(
    images=dict(
        id=_is_whole, file_name=_is_text, width=_is_whole, height=_is_whole
    ),
    annotations=dict(
        id=_is_whole,
        image_id=_is_whole,
        category_id=_is_whole,
        bbox=_is_box,
    ),
    categories=dict(id=_is_whole, name=_is_text),
)


def _check_categories(categories: list[dict], report: SplitReport) -> None:
    expected = dict(zip(CATEGORY_IDS, CocoDataset.METAINFO['classes']))
    found = {c['id']: c['name'] for c in categories}
    wrong = [
        f'{i} is {found.get(i, "missing")!r} instead of '
        f'{expected.get(i, "nothing")!r}'
        for i in sorted({*expected, *found})
        if expected.get(i) != found.get(i)
    ]
    report.facts.append(f'{len(found)} categories')
    report.add_error("categories differ from COCO's 80", wrong)


def _check_annotations(
    images: list[dict], annotations: list[dict], report: SplitReport
) -> None:
    sizes = {i['id']: (i['width'], i['height']) for i in images}
    if len(sizes) < len(images):
        report.errors.append(
            f'{len(images) - len(sizes)} image ids are used more than once'
        )
    if len({a['id'] for a in annotations}) < len(annotations):
        report.errors.append('annotation ids are used more than once')
    strays, flat, outside = [], [], []
    for annotation in annotations:
        size = sizes.get(annotation['image_id'])
        if size is None or annotation['category_id'] not in CATEGORY_IDS:
            strays.append(annotation['id'])
            continue
        x, y, w, h = annotation['bbox']
        if w <= 0 or h <= 0:
            flat.append(annotation['id'])
        elif x < -1 or y < -1 or x + w > size[0] + 1 or y + h > size[1] + 1:
            outside.append(annotation['id'])
    annotated = {a['image_id'] for a in annotations}
    report.facts.append(
        f'{len(annotated & set(sizes)):,} images with annotations'
    )
    report.add_error('annotations of unknown images or categories', strays)
    report.add_warning('boxes without area, which mmdet leaves out', flat)
    report.add_error(
        'boxes outside their images (are they x, y, width, height?)', outside
    )


def _check_images(
    folder: Path,
    images: list[dict],
    num_images: int | None,
    report: SplitReport,
) -> None:
    if not folder.is_dir():
        report.errors.append(f'there is no folder {folder}')
        return
    present = {
        entry.name: entry.stat().st_size
        for entry in folder.iterdir()
        if entry.is_file()
    }
    names = {image['file_name'] for image in images}
    missing = sorted(names - set(present))
    empty = sorted(name for name in names if present.get(name) == 0)
    report.facts.append(
        f'{len(names) - len(missing):,} of {len(names):,} '
        f'image files in {folder}'
    )
    report.add_error('image files are missing', missing)
    report.add_error('image files are empty', empty)
    readable = sorted(
        (image for image in images if present.get(image['file_name'])),
        key=lambda image: image['file_name'],
    )
    if num_images is not None:
        readable = random.Random(0).sample(
            readable, min(num_images, len(readable))
        )
    found = thread_map(
        lambda image: _fault(folder, image),
        readable,
        desc=f'decoding {folder.name}',
    )
    faults = [fault for fault in found if fault]
    report.facts.append(
        f'{len(readable) - len(faults):,} of '
        f'{len(readable):,} decoded image files are whole'
    )
    report.add_error('image files are broken', faults)


def _fault(folder: Path, image: dict) -> str | None:
    """What is wrong with an image file, if anything."""
    name = image['file_name']
    try:
        with Image.open(folder / name) as opened:
            opened.load()  # decodes all, so a truncated file fails here
            size = opened.size
    except Exception as error:
        return f'{name} ({error})'
    if size != (image['width'], image['height']):
        return (
            f'{name} (is {size[0]} x {size[1]}, not {image["width"]} x '
            f'{image["height"]})'
        )
    return None
