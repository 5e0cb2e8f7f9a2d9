"""Is a COCO folder whole? Better asked before a training of days."""

import json
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mmdet.datasets import CocoDataset
from PIL import Image
from tqdm import tqdm

# Images and annotations of the official files of 2017.
COUNTS = dict(train=(118287, 860001), val=(5000, 36781))
# The ids of the 80 classes, in the order of their names in mmdet.
CATEGORY_IDS = tuple(
    i
    for i in range(1, 91)
    if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
)


@dataclass
class SplitReport:
    """What was found in a split.

    Attributes:
        facts: Counts, for the reader.
        errors: What will stop a training or falsify its figures.
        warnings: What may be intended.
    """

    facts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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
        num_images: Images to decode, chosen at random but always the same;
            None for all, 0 for none.
        subset: Accept other counts: the folder holds a part of COCO.
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
    found = len(images), len(annotations)
    if found != COUNTS[split]:
        (report.warnings if subset else report.errors).append(
            'the official file has {:,} images and {:,} annotations'.format(
                *COUNTS[split]
            )
            + ('' if subset else '; --subset accepts a part of it')
        )
    _check_categories(content['categories'], report)
    _check_annotations(images, annotations, report)
    _check_images(folder, images, num_images, report)
    return report


def _read(path: Path, report: SplitReport) -> dict | None:
    if not path.is_file():
        report.errors.append(f'there is no {path}')
        return None
    try:
        content = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        report.errors.append(f'{path} is no JSON file, or is cut off: {error}')
        return None
    needed = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in needed
    ):
        report.errors.append(
            f'{path} must hold lists of {", ".join(needed)}; '
            'is it a file of annotations of objects?'
        )
        return None
    return content


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
    if wrong:
        report.errors.append(_some("categories differ from COCO's 80", wrong))


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
            strays.append(str(annotation['id']))
            continue
        x, y, w, h = annotation['bbox']
        if w <= 0 or h <= 0:
            flat.append(str(annotation['id']))
        elif x < -1 or y < -1 or x + w > size[0] + 1 or y + h > size[1] + 1:
            outside.append(str(annotation['id']))
    annotated = {a['image_id'] for a in annotations}
    report.facts.append(
        f'{len(annotated & set(sizes)):,} images with annotations'
    )
    if strays:
        report.errors.append(
            _some('annotations of unknown images or categories', strays)
        )
    if flat:
        report.warnings.append(
            _some('boxes without area, which mmdet leaves out', flat)
        )
    if outside:
        report.errors.append(
            _some(
                'boxes outside their images (are they x, y, width, height?)',
                outside,
            )
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
    if missing:
        report.errors.append(_some('image files are missing', missing))
    if empty:
        report.errors.append(_some('image files are empty', empty))
    readable = sorted(
        (image for image in images if present.get(image['file_name'])),
        key=lambda image: image['file_name'],
    )
    if num_images is not None:
        readable = random.Random(0).sample(
            readable, min(num_images, len(readable))
        )
    with ThreadPoolExecutor() as pool:
        faults = list(
            tqdm(
                pool.map(lambda image: _fault(folder, image), readable),
                total=len(readable),
                desc=f'decoding {folder.name}',
            )
        )
    faults = [fault for fault in faults if fault]
    report.facts.append(
        f'{len(readable) - len(faults):,} of '
        f'{len(readable):,} decoded image files are whole'
    )
    if faults:
        report.errors.append(_some('image files are broken', faults))


def _fault(folder: Path, image: dict) -> str | None:
    name = image['file_name']
    try:
        with Image.open(folder / name) as opened:
            opened.load()  # all of it: a cut-off file fails here
            size = opened.size
    except Exception as error:
        return f'{name} ({error})'
    if size != (image['width'], image['height']):
        return (
            f'{name} (is {size[0]} x {size[1]}, not {image["width"]} x '
            f'{image["height"]})'
        )
    return None


def _some(what: str, items: Iterable[str]) -> str:
    items = list(items)
    more = f' and {len(items) - 3:,} more' if len(items) > 3 else ''
    return f'{what} ({len(items):,}): {", ".join(items[:3])}{more}'
