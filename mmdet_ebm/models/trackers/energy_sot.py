"""A tracker: a correlation filter finds the target, energies fit the box."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from ...tracking import Region
from .correlation_filter import CorrelationFilter
from .target_conditional_energy import TargetConditionalEnergy


@dataclass(frozen=True)
class TrackedTarget:
    """Where the target is in one frame.

    Attributes:
        box: (4,) corners in pixels of the frame.
        confidence: Height of the filter's response, from 0 to 1.
    """

    box: np.ndarray
    confidence: float


@MODELS.register_module()
class EnergySOT(TargetConditionalEnergy):
    """Follows one target through a video.

    In each frame a correlation filter on the two finest maps of the backbone
    finds the centre, and the ascent on the density around the moved box finds
    the box. Weights are those of a ``TargetConditionalEnergy``.

    In mmdet's test loop the frames of a video must come one after the other.
    The true box is read in the first frame of each video and nowhere else.

    Args:
        location_context: Side of the region in which the target is looked
            for, over the root of its area.
        learning_rate: Weight of a new frame in the filter.
        **kwargs: Of ``TargetConditionalEnergy``.
    """

    def __init__(
        self,
        location_context: float = 3.0,
        learning_rate: float = 0.02,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.location_context = location_context
        self.learning_rate = learning_rate

    def init(self, frame: np.ndarray, box: np.ndarray) -> None:
        """Look at the target.

        Args:
            frame: (H, W, 3) BGR uint8.
            box: (4,) its corners.
        """
        self._box = np.asarray(box, float)
        self._template = self.template(frame, self._box)
        self._filter = CorrelationFilter(self.learning_rate)
        self._learn(frame)

    def track(self, frame: np.ndarray) -> TrackedTarget:
        """Find the target in the next frame (H, W, 3), BGR uint8."""
        features, region = self._features_around(frame)
        cells, height = self._filter.locate(features)
        pixels = np.array([region.width, region.height]) / features.shape[2]
        shift = cells.cpu().double().numpy() * pixels
        moved = self._box + np.tile(shift, 2)
        self._box = self.refine(frame, self._template, moved[None]).boxes[0]
        self._learn(frame)
        return TrackedTarget(self._box, min(max(height, 0.0), 1.0))

    def _learn(self, frame: np.ndarray) -> None:
        """Tell the filter how the target in the present box looks."""
        features, region = self._features_around(frame)
        width, height = self._box[2:] - self._box[:2]
        self._filter.learn(
            features, (width / region.width, height / region.height)
        )

    def _features_around(self, frame: np.ndarray) -> tuple[Tensor, Region]:
        """(C, H, W) of the region around the present box."""
        region = Region.around(
            self._box, self.location_context, self.patch_size
        )
        with torch.inference_mode(False), torch.no_grad():
            fine, coarse = self._maps(region.cut(frame))[:2]
            coarse = F.interpolate(coarse, fine.shape[2:], mode='bilinear')
        return torch.cat([fine, coarse], 1)[0], region

    # --------------------------------------------------- mmengine's interface

    def test_step(self, data: dict) -> list[DetDataSample]:
        """Frames as they are, one for each sample: patches come later."""
        return self.predict(data['inputs'], data['data_samples'])

    val_step = test_step

    def predict(
        self, inputs: Sequence[Tensor], data_samples: Sequence[DetDataSample]
    ) -> list[DetDataSample]:
        """Track through some frames.

        Args:
            inputs: (3, H, W) BGR uint8 of each.
            data_samples: With ``frame_id``, and in a video's first frame one
                box in ``gt_instances``.

        Returns:
            The samples with ``pred_instances``: one box, its confidence as
            the score, and the label 0.
        """
        for image, sample in zip(inputs, data_samples):
            frame = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
            if sample.frame_id == 0:
                box = sample.gt_instances.bboxes[0].cpu().double().numpy()
                self.init(frame, box)
                found = TrackedTarget(box, 1.0)
            else:
                found = self.track(frame)
            sample.pred_instances = InstanceData(
                bboxes=torch.tensor(found.box, dtype=torch.float32)[None],
                scores=torch.tensor([found.confidence]),
                labels=torch.zeros(1, dtype=torch.int64),
            )
        return list(data_samples)
