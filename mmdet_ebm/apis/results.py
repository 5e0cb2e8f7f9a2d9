"""The results of inference, for an image and for a run, as data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

# Fields of a prediction in the order of the JSON; a model may lack some.
FIELDS = (
    'labels',
    'scores',
    'bboxes',
    'masks',
    'logdensities',
    'initial_bboxes',
    'box_std',
    'box_logprobs',
    'class_scores',
    'object_probs',
    'qualities',
)
_FIELDS_OF_FOUR = ('bboxes', 'initial_bboxes', 'box_std')
# The name for one detection of a number that an image has for each of them.
NAMES_OF_ONE = {
    'scores': 'score',
    'logdensities': 'logdensity',
    'box_logprobs': 'box_logprob',
    'class_scores': 'class_score',
    'object_probs': 'object_prob',
    'qualities': 'quality',
}
# COCO's names. Boxes are not among them: corners become x, y, width, height.
_COCO_FIELDS = NAMES_OF_ONE | {'box_std': 'box_std', 'masks': 'segmentation'}


@dataclass
class ImageResult:
    """The result of one image or video frame.

    Attributes:
        name: Of the image, see ``Source``; ``NAME/000012`` is a frame.
        prediction: Lists by field, boxes in the image's pixels; None if the
            image was skipped.
        picture: (H, W, 3) uint8 RGB, if it was asked for.
        error: Why the image was skipped; None if it was not.
        kept: Whether the prediction is from an earlier run.
        redrawn: Whether it is, and its picture was drawn again.
        sample: mmdet's result, unless ``kept``.
        index: Number of the image in the order of the inputs.
    """

    name: str
    prediction: dict | None = None
    picture: np.ndarray | None = None
    error: str | None = None
    kept: bool = False
    redrawn: bool = False
    sample: DetDataSample | None = None
    index: int = 0


@dataclass
class Summary:
    """Counts of a run.

    Attributes:
        done: Images and frames with a result, including the kept ones.
        kept: Those whose results are from an earlier run.
        redrawn: Those of the kept ones whose pictures were drawn again.
        skipped: Reason by name.
        seconds: Duration.
    """

    done: int = 0
    kept: int = 0
    redrawn: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, result: ImageResult) -> None:
        if result.error is not None:
            self.skipped[result.name] = result.error
        else:
            self.done += 1
            self.kept += result.kept
            self.redrawn += result.redrawn

    def __str__(self) -> str:
        new = self.done - self.kept
        earlier = f'{self.kept} by an earlier run' if self.kept else ''
        if self.redrawn:
            earlier += f', {self.redrawn} of them drawn again'
        rate = f', {new / self.seconds:.1f} images/s' if new else ''
        lines = [
            f'{self.done} done{f" ({earlier})" if earlier else ""}, '
            f'{len(self.skipped)} skipped, in {self.seconds:.1f} s{rate}'
        ]
        lines += [
            f'skipped {name}: {reason}'
            for name, reason in self.skipped.items()
        ]
        return printable('\n'.join(lines))


def to_prediction(instances: InstanceData) -> dict:
    """Convert detections to mmdet's JSON form, with this package's fields.

    Returns:
        For K detections ``labels``, ``scores`` [K], ``bboxes`` [K][4] and, if
        the model gives them, ``masks`` (run lengths), ``logdensities`` [K],
        ``initial_bboxes`` [K][4], ``box_std`` [K][4], ``box_logprobs`` [K],
        ``class_scores`` [K], ``object_probs`` [K] and ``qualities`` [K]. Boxes
        are corners in the image's pixels. A number that is not finite is None,
        because JSON has no word for it; the uncertainty of a very small box is
        such a number.
    """
    instances = instances.cpu()
    prediction = {
        name: _finite(instances[name].tolist())
        for name in FIELDS
        if name in instances and name != 'masks'
    }
    if 'masks' in instances:
        encoded = encode_mask_results(np.asarray(instances.masks))
        prediction['masks'] = [
            dict(mask, counts=mask['counts'].decode()) for mask in encoded
        ]
    return prediction


def is_prediction(value: Any) -> bool:
    """Whether a JSON value is what :func:`to_prediction` returns."""
    try:
        # Decoding masks would take long, and they are checked where used.
        numbers = to_instances(
            {name: entry for name, entry in value.items() if name != 'masks'}
        )
        return len({len(entry) for entry in value.values()}) == 1 and bool(
            numbers.bboxes.isfinite().all() and numbers.scores.isfinite().all()
        )
    except Exception:  # anything may stand there instead
        return False


def printable(name: str) -> str:
    """A name that can be printed; those of files may be no text."""
    return name.encode('utf-8', 'backslashreplace').decode()


def to_instances(prediction: dict) -> InstanceData:
    """Convert what :func:`to_prediction` returned back to detections."""
    instances = InstanceData()
    for name, values in prediction.items():
        if name == 'masks':
            if values:
                instances.masks = np.stack(
                    [coco_mask.decode(mask) for mask in values]
                ).astype(bool)
        elif name in FIELDS:
            dtype = torch.int64 if name == 'labels' else torch.float32
            tensor = torch.from_numpy(np.array(values, float)).to(dtype)
            is_four = name in _FIELDS_OF_FOUR
            instances[name] = tensor.view(-1, 4) if is_four else tensor
    return instances


def coco_annotations(prediction: dict) -> list[dict]:
    """Convert the prediction of an image to COCO annotations without ids."""
    annotations = []
    for row, label in enumerate(prediction['labels']):
        box = xywh(prediction['bboxes'][row])
        annotation = dict(
            category_id=label + 1, bbox=box, area=box[2] * box[3], iscrowd=0
        )
        for plural, name in _COCO_FIELDS.items():
            if plural in prediction:
                annotation[name] = prediction[plural][row]
        if 'initial_bboxes' in prediction:
            annotation['initial_bbox'] = xywh(
                prediction['initial_bboxes'][row]
            )
        annotations.append(annotation)
    return annotations


def xywh(corners: Sequence[float]) -> list[float]:
    """Corners x1, y1, x2, y2 of a box as x1, y1, width, height."""
    x1, y1, x2, y2 = corners
    return [x1, y1, x2 - x1, y2 - y1]


def _finite(values):
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if math.isfinite(values) else None
