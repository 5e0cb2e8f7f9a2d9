"""Results in the forms that other tools read.

Each function converts the results of an image or of a folder; nothing is
computed again. Names of fields are those of one detection in COCO's form:
``score``, ``logdensity``, ``box_logprob``, ``class_score``, ``object_prob``
and ``quality``. docs/exports.md says what they mean and what to type in each
tool.
"""

import csv
import importlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from boltons.iterutils import chunked_iter

from .results import (
    NAMES_OF_ONE,
    coco_annotations,
    printable,
    to_instances,
)
from .results_folder import SavedImage, write_file, write_whole

if TYPE_CHECKING:
    import supervision

SIDES = ('x1', 'y1', 'x2', 'y2')
# What the columns of a field of four begin with.
PREFIXES = {'bboxes': '', 'box_std': 'std_', 'initial_bboxes': 'initial_'}
_IMAGE_COLUMNS = {
    'image': 'string',
    'path': 'string',
    'width': 'int32',
    'height': 'int32',
    'label': 'int32',
    'class_name': 'string',
}
# Names and Arrow types of the columns of a table.
COLUMNS = (
    _IMAGE_COLUMNS
    | dict.fromkeys(NAMES_OF_ONE.values(), 'float64')
    | {
        f'{prefix}{side}': 'float64'
        for prefix in PREFIXES.values()
        for side in SIDES
    }
)
_ROW_GROUP = 2**16


def to_supervision(
    prediction: dict, classes: Sequence[str]
) -> 'supervision.Detections':
    """Convert a prediction to the detections of the library ``supervision``.

    Args:
        prediction: See :func:`to_prediction`; K detections.
        classes: Names of the labels.

    Returns:
        Boxes as corners in the image's pixels. ``data`` holds ``class_name``
        (K,) and, as far as the prediction has them, ``logdensity``,
        ``box_logprob``, ``class_score``, ``object_prob`` and ``quality``
        (K,), and in pixels ``box_std`` and ``initial_bbox`` (K, 4). What is
        not known is NaN.

    Raises:
        ModuleNotFoundError: If supervision is not installed.
    """
    library = _required('supervision', 'supervision')
    instances = to_instances(prediction)
    names = NAMES_OF_ONE | {
        'box_std': 'box_std',
        'initial_bboxes': 'initial_bbox',
    }
    del names['scores']  # the confidence
    data = {
        name: instances[field].numpy()
        for field, name in names.items()
        if field in instances
    }
    data['class_name'] = np.array(
        [classes[label] for label in prediction['labels']], str
    )
    return library.Detections(
        xyxy=instances.bboxes.numpy(),
        mask=instances.get('masks'),
        confidence=instances.scores.numpy(),
        class_id=instances.labels.numpy(),
        data=data,
    )


def select(prediction: dict, score_thr: float) -> dict:
    """The detections of a prediction with a score of at least a threshold."""
    rows = [
        row
        for row, score in enumerate(prediction['scores'])
        if score >= score_thr
    ]
    return {
        field: [values[row] for row in rows]
        for field, values in prediction.items()
    }


def table_rows(image: SavedImage, classes: Sequence[str]) -> list[dict]:
    """A flat row for each detection of an image.

    Args:
        image: Its boxes are in the image's pixels.
        classes: Names of the labels.

    Returns:
        Values by name of the column, see ``COLUMNS``. Corners are ``x1`` to
        ``y2``; ``std_`` is before their standard deviations and ``initial_``
        before those of the detector's box, all in pixels. What the model does
        not give, or could not tell, is None. Masks are left out.
    """
    return [
        dict(
            image=printable(image.name),
            path=image.path and printable(image.path),
            width=image.width,
            height=image.height,
            label=label,
            class_name=classes[label],
        )
        | numbers_of(image.prediction, row)
        for row, label in enumerate(image.prediction['labels'])
    ]


def write_csv(
    images: Iterable[SavedImage], classes: Sequence[str], path: Path
) -> None:
    """Write the rows of :func:`table_rows` as CSV; None is an empty cell."""
    with write_whole(path, text_mode=False) as file:
        text = io.TextIOWrapper(file, 'utf-8', newline='')
        writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
        writer.writeheader()
        for image in images:
            writer.writerows(table_rows(image, classes))
        text.detach()


def write_parquet(
    images: Iterable[SavedImage], classes: Sequence[str], path: Path
) -> None:
    """Write the rows of :func:`table_rows` as Parquet.

    Raises:
        ModuleNotFoundError: If pyarrow is not installed.
    """
    arrow = _required('pyarrow', 'parquet')
    parquet = _required('pyarrow.parquet', 'parquet')
    schema = arrow.schema(list(COLUMNS.items()))
    rows = (row for image in images for row in table_rows(image, classes))
    with write_whole(path, text_mode=False) as file:
        with parquet.ParquetWriter(file, schema) as writer:
            for group in chunked_iter(rows, _ROW_GROUP):
                writer.write_table(arrow.Table.from_pylist(group, schema))


def fiftyone_dataset(
    images: Iterable[SavedImage], classes: Sequence[str]
) -> dict:
    """A COCO data set for FiftyOne's ``COCODetectionDataset``.

    Args:
        images: Their boxes are in the images' pixels.
        classes: Names of the labels.

    Returns:
        As ``predictions.json`` of a results folder, with two differences for
        FiftyOne: images are named by their full paths, so that it finds them,
        and each side's deviation is a number by itself, so that one can sort
        and filter by it. What is not known is left out.
    """
    records: dict[str, list[dict]] = dict(
        images=[],
        categories=[dict(id=i + 1, name=c) for i, c in enumerate(classes)],
        annotations=[],
    )
    for number, image in enumerate(images):
        records['images'].append(
            dict(
                id=number,
                file_name=image.path,
                width=image.width,
                height=image.height,
            )
        )
        for row, annotation in enumerate(coco_annotations(image.prediction)):
            annotation.pop('box_std', None)
            annotation |= {
                name: number
                for name, number in numbers_of(image.prediction, row).items()
                if name not in SIDES and 'initial' not in name
            }
            annotation.update(
                id=len(records['annotations']) + 1, image_id=number
            )
            records['annotations'].append(
                {k: v for k, v in annotation.items() if v is not None}
            )
    return records


def write_fiftyone(
    images: Iterable[SavedImage], classes: Sequence[str], path: Path
) -> None:
    """Write :func:`fiftyone_dataset` as JSON."""
    write_file(path, json.dumps(fiftyone_dataset(images, classes)))


def numbers_of(prediction: dict, row: int) -> dict[str, float | None]:
    """The numbers of a detection by column; None where not known."""

    def value(field):
        return prediction[field][row] if field in prediction else None

    numbers = {name: value(field) for field, name in NAMES_OF_ONE.items()}
    for field, prefix in PREFIXES.items():
        four = value(field) or [None] * 4
        numbers |= {f'{prefix}{side}': v for side, v in zip(SIDES, four)}
    return numbers


def _required(module: str, extra: str) -> ModuleType:
    """Import a module that comes with an extra of this package."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; pip install 'mmdet_ebm[{extra}]' brings it"
        ) from error
