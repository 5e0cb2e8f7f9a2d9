"""Results as pre-annotations: boxes that people correct in another tool.

docs/exports.md says what to type there.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from ..version import __version__
from .exports import PREFIXES, SIDES, numbers_of
from .results import NAMES_OF_ONE, printable
from .results_folder import SavedImage, write_file, write_whole

# What CVAT knows of a box beside its place and label.
CVAT_ATTRIBUTES = (
    *NAMES_OF_ONE.values(),
    *(f'{PREFIXES["box_std"]}{side}' for side in SIDES),
)


def label_studio_task(
    image: SavedImage, classes: Sequence[str], image_prefix: str
) -> dict:
    """A task of Label Studio with the detections as its prediction.

    Args:
        image: Its boxes are in the image's pixels.
        classes: Names of the labels.
        image_prefix: What is before the name of an image in its address.

    Returns:
        For the labelling interface of :func:`label_studio_interface`. Boxes
        are in per cent of the image's width and height. The task's score is
        the mean of the boxes' scores. Log-probability, deviations and quality
        are a text at the box.
    """
    prediction, scores = image.prediction, image.prediction['scores']
    regions = [
        dict(
            id=f'box{row}',
            type='rectanglelabels',
            from_name='label',
            to_name='image',
            original_width=image.width,
            original_height=image.height,
            image_rotation=0,
            score=scores[row],
            meta=dict(text=_described(numbers_of(prediction, row))),
            value=dict(
                x=100 * x1 / image.width,
                y=100 * y1 / image.height,
                width=100 * (x2 - x1) / image.width,
                height=100 * (y2 - y1) / image.height,
                rotation=0,
                rectanglelabels=[classes[prediction['labels'][row]]],
            ),
        )
        for row, (x1, y1, x2, y2) in enumerate(prediction['bboxes'])
    ]
    return dict(
        data=dict(image=image_prefix + quote(os.fsencode(image.name))),
        predictions=[
            dict(
                model_version=f'mmdet_ebm {__version__}',
                score=sum(scores) / max(1, len(scores)),
                result=regions,
            )
        ],
    )


def label_studio_interface(classes: Sequence[str]) -> str:
    """The labelling interface of a project for :func:`label_studio_task`."""
    view = ElementTree.Element('View')
    ElementTree.SubElement(view, 'Image', name='image', value='$image')
    labels = ElementTree.SubElement(
        view, 'RectangleLabels', name='label', toName='image'
    )
    for name in classes:
        ElementTree.SubElement(labels, 'Label', value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, 'unicode')


def write_label_studio(
    images: Iterable[SavedImage],
    classes: Sequence[str],
    path: Path,
    image_prefix: str,
) -> None:
    """Write the tasks of :func:`label_studio_task` as JSON."""
    tasks = [label_studio_task(i, classes, image_prefix) for i in images]
    write_file(path, json.dumps(tasks, indent=1))


def cvat_image(
    image: SavedImage, classes: Sequence[str], number: int
) -> ElementTree.Element:
    """An image and its boxes in the form "CVAT for images 1.1".

    Args:
        image: Its boxes are in the image's pixels.
        classes: Names of the labels.
        number: Of the image in the file, from 0. CVAT goes by the name.

    Returns:
        Element ``image`` with a ``box`` for each detection. What is known of
        ``CVAT_ATTRIBUTES`` is in its attributes, with four digits.
    """
    element = ElementTree.Element(
        'image',
        id=str(number),
        name=printable(image.name),
        width=str(image.width),
        height=str(image.height),
    )
    for row, label in enumerate(image.prediction['labels']):
        numbers = numbers_of(image.prediction, row)
        corners = (str(numbers[side]) for side in SIDES)
        box = ElementTree.SubElement(
            element,
            'box',
            dict(zip(('xtl', 'ytl', 'xbr', 'ybr'), corners)),
            label=classes[label],
            source='auto',
            occluded='0',
            z_order='0',
        )
        for name in CVAT_ATTRIBUTES:
            if numbers[name] is not None:
                attribute = ElementTree.SubElement(box, 'attribute', name=name)
                attribute.text = f'{numbers[name]:.4g}'
    return element


def cvat_labels(classes: Sequence[str]) -> str:
    """The labels of a CVAT task for :func:`cvat_image`: its "Raw" JSON."""
    attributes = [
        dict(
            name=name,
            input_type='text',
            mutable=False,
            default_value='',
            values=[''],
        )
        for name in CVAT_ATTRIBUTES
    ]
    labels = [
        dict(name=name, type='rectangle', attributes=attributes)
        for name in classes
    ]
    return json.dumps(labels, indent=1)


def write_cvat(
    images: Iterable[SavedImage], classes: Sequence[str], path: Path
) -> None:
    """Write the elements of :func:`cvat_image` as XML of CVAT 1.1."""
    with write_whole(path, text_mode=False) as file:
        file.write(
            b'<?xml version="1.0" encoding="utf-8"?>\n'
            b'<annotations>\n<version>1.1</version>\n'
        )
        file.write(_xml(_cvat_meta(classes)))
        for number, image in enumerate(images):
            file.write(_xml(cvat_image(image, classes, number)))
        file.write(b'</annotations>\n')


def _described(numbers: dict[str, float | None]) -> list[str]:
    """What is known of how good a box is, for people to read."""
    lines = []
    if numbers['box_logprob'] is not None:
        lines.append(f'log-probability {numbers["box_logprob"]:.2f}')
    deviations = [numbers[f'{PREFIXES["box_std"]}{s}'] for s in SIDES]
    if None not in deviations:
        lines.append(
            'deviations of x1, y1, x2, y2 in pixels: '
            + ', '.join(f'{deviation:.2g}' for deviation in deviations)
        )
    if numbers['quality'] is not None:
        lines.append(f'expected quality {numbers["quality"]:.2f}')
    return lines


def _cvat_meta(classes: Sequence[str]) -> ElementTree.Element:
    """:func:`cvat_labels` as XML."""
    meta = ElementTree.Element('meta')
    task = ElementTree.SubElement(meta, 'task')
    labels = ElementTree.SubElement(task, 'labels')

    def add(parent, **texts):
        for name, text in texts.items():
            ElementTree.SubElement(parent, name).text = text

    for label in json.loads(cvat_labels(classes)):
        element = ElementTree.SubElement(labels, 'label')
        add(element, name=label['name'], type=label['type'])
        attributes = ElementTree.SubElement(element, 'attributes')
        for attribute in label['attributes']:
            add(
                ElementTree.SubElement(attributes, 'attribute'),
                name=attribute['name'],
                mutable=str(attribute['mutable']),
                input_type=attribute['input_type'],
                default_value=attribute['default_value'],
                values='',
            )
    return meta


def _xml(element: ElementTree.Element) -> bytes:
    ElementTree.indent(element)
    return ElementTree.tostring(element) + b'\n'
