"""What the explorer shows of one image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor

from ..core import CLASS_SCORE_ALONE, BoxDensity
from ..models import EnergyDetector, Refinement
from ..models.detectors import Detected
from ..models.detectors.refinement import to_original_frame
from ..models.energy_map import (
    BoxReadings,
    EnergyMap,
    compute_energy_map,
    read_boxes,
)
from ..ops import boxes_to_relative, relative_to_boxes

RANKINGS = ('as fitted', 'class score', 'class score x quality')


@dataclass(frozen=True)
class Choices:
    """What a person changes about the density.

    Attributes:
        prior: Whether the detector's box counts as evidence.
        temperature: T; None as it was fitted.
        ranking: One of ``RANKINGS``.
    """

    prior: bool = True
    temperature: float | None = None
    ranking: str = RANKINGS[0]

    def __post_init__(self) -> None:
        if self.ranking not in RANKINGS:
            raise ValueError(
                f'ranking must be one of {", ".join(RANKINGS)}, got '
                f'{self.ranking!r}'
            )

    @contextmanager
    def applied(self, density: BoxDensity) -> Iterator[None]:
        """Within it, the density has the numbers that were chosen."""
        before = density.numbers()
        numbers: dict[str, float] = {}
        if not self.prior:
            numbers['side_std'] = torch.inf
        if self.temperature is not None:
            numbers['temperature'] = self.temperature
        if self.ranking != RANKINGS[0]:
            numbers['quality_power'] = float(RANKINGS.index(self.ranking) - 1)
            numbers |= CLASS_SCORE_ALONE
        try:
            density.set_numbers(**numbers)
            yield
        finally:
            density.set_numbers(**before)


@torch.no_grad()
def detect(
    model: EnergyDetector, image: np.ndarray
) -> tuple[Detected, DetDataSample]:
    """What is found in one image (H, W, 3) BGR, as the config prepares it."""
    steps = [
        step
        for step in get_test_pipeline_cfg(model.cfg)
        if 'LoadAnnotations' not in step['type']
    ]
    steps[0] = dict(type='mmdet.LoadImageFromNDArray')
    batch = pseudo_collate([Compose(steps)(dict(img=image, img_id=0))])
    data = model.data_preprocessor(batch, False)
    samples = data['data_samples']
    return model.detect(data['inputs'], samples), samples[0]


class Look:
    """One image, its detections, and questions about them.

    Args:
        model: With its weights, in eval mode; its stages are not changed.
        image: (H, W, 3) uint8 RGB.
        choices: What to change about the density.

    Attributes:
        image: The same.
        choices: The same.
        instances: Detections in the image's pixels, by falling score.
        plain: Those of the detector alone.
    """

    def __init__(
        self,
        model: EnergyDetector,
        image: np.ndarray,
        choices: Choices | None = None,
    ) -> None:
        self.model, self.image = model, image
        self.choices = choices or Choices()
        before = model.refinement
        model.refinement = Refinement(keep_plain=True, uncertainty=True)
        try:
            with self.choices.applied(model.energy_model.density):
                self._found, sample = detect(model, mmcv.rgb2bgr(image))
        finally:
            model.refinement = before
        self._scale = sample.metainfo.get('scale_factor', (1.0, 1.0))
        meta = dict(scale_factor=self._scale)
        scores = self._found.instances[0].scores
        self._order = scores.argsort(descending=True, stable=True)
        instances = to_original_frame(self._found.instances[0], meta)
        self.instances: InstanceData = instances[self._order].cpu()
        self.plain: InstanceData = to_original_frame(
            self._found.plain[0], meta
        ).cpu()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(self.model.dataset_meta['classes'])

    def at(self, x: float, y: float, score_thr: float = 0.0) -> int | None:
        """The smallest detection that a point of the image lies in.

        Args:
            x: In the image's pixels.
            y: The same.
            score_thr: Only detections with at least this score.
        """
        boxes = self.instances.bboxes
        inside = (
            (boxes[:, 0] <= x)
            & (x <= boxes[:, 2])
            & (boxes[:, 1] <= y)
            & (y <= boxes[:, 3])
            & (self.instances.scores >= score_thr)
        )
        if not inside.any():
            return None
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        return int(area.masked_fill(~inside, torch.inf).argmin())

    def energy_map(self, number: int, resolution: int = 41) -> EnergyMap:
        """The density around a detection, and the way of the ascent."""
        with self.choices.applied(self.model.energy_model.density):
            return compute_energy_map(
                self.model.energy_model,
                self._found,
                0,
                self._row(number),
                self._scale,
                resolution,
            )

    def moved(self, number: int, relative: Tensor) -> Tensor:
        """Corners of boxes (B, 4) near a detection, in the image's pixels.

        Args:
            number: Which detection.
            relative: (B, 4) shifts over the box's size and logarithms of the
                ratios of sizes, see ``mmdet_ebm.ops.relative_to_boxes``.
        """
        return relative_to_boxes(relative, self.instances.bboxes[number])

    def read(self, number: int, boxes: Tensor) -> BoxReadings:
        """What the density of a detection says of boxes.

        Args:
            number: Which detection.
            boxes: (B, 4) corners in the image's pixels.
        """
        scale = boxes.new_tensor(self._scale).repeat(2)
        with self.choices.applied(self.model.energy_model.density):
            return read_boxes(
                self.model.energy_model,
                self._found,
                0,
                self._row(number),
                boxes * scale,
            )

    def table(self) -> list[dict[str, Any]]:
        """A row for each detection, to be shown or written as JSON."""
        rows = []
        fields = self.instances
        for number in range(len(fields)):
            one = fields[number]
            before = one.get('initial_bboxes', one.bboxes)
            shift = boxes_to_relative(one.bboxes, before)
            row = dict(
                number=number,
                label=self.classes[int(one.labels[0])],
                score=float(one.scores[0]),
                class_score=float(one.get('class_scores', one.scores)[0]),
                bbox=one.bboxes[0].tolist(),
                initial_bbox=before[0].tolist(),
                moved=float(shift.abs().max()),
            )
            for name, key in (
                ('object_probs', 'object_prob'),
                ('qualities', 'quality'),
                ('box_logprobs', 'logprob'),
            ):
                if name in one:
                    row[key] = float(one[name][0])
            row['std'] = one.box_std[0].tolist()
            rows.append(row)
        return rows

    def with_choices(self, **changes: Any) -> 'Look':
        """The same image under other choices."""
        return Look(self.model, self.image, replace(self.choices, **changes))

    def _row(self, number: int) -> int:
        if not 0 <= number < len(self._order):
            raise IndexError(
                f'there is no detection {number}: the image has '
                f'{len(self._order)}'
            )
        return int(self._order[number])
