"""What inference gives for an image and for a run, as data."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

# Fields of a prediction, in the order of the JSON, where a model gives them.
FIELDS = (
    'labels',
    'scores',
    'bboxes',
    'masks',
    'logdensities',
    'initial_bboxes',
    'box_std',
    'box_logprobs',
)
_WIDTHS = {'bboxes': 4, 'initial_bboxes': 4, 'box_std': 4}


@dataclass
class ImageResult:
    """What became of one image or video frame.

    Attributes:
        name: Of the image, see ``Source``; ``NAME/000012`` is a frame.
        prediction: Lists by field, boxes in the image's pixels; None if the
            image was skipped.
        picture: (H, W, 3) uint8 RGB, if it was asked for.
        error: Why it was skipped.
        kept: Whether the prediction is an earlier run's.
        redrawn: Whether it was kept, and a picture drawn of it.
        sample: mmdet's result, unless ``kept``.
        index: Its place in the order of the inputs.
    """

    name: str
    prediction: dict | None = None
    picture: np.ndarray | None = None
    error: str | None = None
    kept: bool = False
    redrawn: bool = False
    sample: DetDataSample | None = None
    index: int = 0

    def keep(self, prediction: dict | None) -> None:
        """Take an earlier run's prediction, if there is one."""
        self.prediction = prediction
        self.kept = prediction is not None


@dataclass
class Summary:
    """Counts of a run.

    Attributes:
        done: Images (frames) with a result, including the kept ones.
        kept: Those whose results an earlier run had left.
        redrawn: Those of the kept ones whose pictures were drawn anew.
        skipped: Reason, by name.
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
            earlier += f', {self.redrawn} of them drawn anew'
        rate = f', {new / self.seconds:.1f} images/s' if new else ''
        lines = [
            f'{self.done} done{f" ({earlier})" if earlier else ""}, '
            f'{len(self.skipped)} skipped, in {self.seconds:.1f} s{rate}'
        ]
        lines += [
            f'skipped {name}: {reason}'
            for name, reason in self.skipped.items()
        ]
        return '\n'.join(lines)


def to_prediction(instances: InstanceData) -> dict:
    """mmdet's JSON form of detections, with this package's fields.

    Returns:
        For K detections ``labels``, ``scores`` [K], ``bboxes`` [K][4], and as
        far as the model gives them ``masks`` (run lengths), ``logdensities``
        [K], ``initial_bboxes`` [K][4], ``box_std`` [K][4] and
        ``box_logprobs`` [K]. A number that is not finite (the uncertainty of
        a box too small to have one) is None: JSON has no other word for it.
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


def to_instances(prediction: dict) -> InstanceData:
    """The detections that :func:`to_prediction` was given."""
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
            width = _WIDTHS.get(name)
            instances[name] = tensor.view(-1, width) if width else tensor
    return instances


def _finite(values):
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if math.isfinite(values) else None
