"""A detector in Detectron's convention of boxes, for its published weights.

There, corners are the indices of the first and the last pixel of a box: its
width is x2 - x1 + 1. mmdet's boxes end where the next pixel begins. Inside
these classes boxes are as the weights know them; ground truth is converted on
its way in and results on their way out.

Sources: the public code of py-faster-rcnn, Detectron and maskrcnn-benchmark.
"""

from collections.abc import Sequence

import torch
from mmdet.models.task_modules.coders import LegacyDeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from .energy_detector import EnergyDetector


@TASK_UTILS.register_module()
class DetectronAnchorGenerator(AnchorGenerator):
    """Anchors whose sides are rounded before they are scaled.

    For a stride of 4 and a scale of 8: 48 x 24, 32 x 32, 24 x 48. mmdet's
    ``LegacyAnchorGenerator`` rounds corners in the end, to 46 x 22 for the
    first. Arguments are ``AnchorGenerator``'s.
    """

    def gen_single_level_base_anchors(
        self,
        base_size: float,
        scales: Tensor,
        ratios: Tensor,
        center: tuple | None = None,
    ) -> Tensor:
        """Anchors (A, 4) of one level, ratios major."""
        if center is not None:
            raise ValueError(
                f'DetectronAnchorGenerator takes no centers, got {center}'
            )
        widths = (base_size**2 / ratios).sqrt().round()
        heights = (widths * ratios).round()
        sides = torch.stack([widths, heights], -1)[:, None]
        half = (sides * scales[:, None] - 1).flatten(0, 1) / 2
        middle = (base_size - 1) / 2
        return torch.cat([middle - half, middle + half], -1)


@TASK_UTILS.register_module()
class DetectronBoxCoder(LegacyDeltaXYWHBBoxCoder):
    """Deltas between boxes of inclusive corners.

    mmdet's ``LegacyDeltaXYWHBBoxCoder`` encodes so, but leaves half a pixel
    out on each side when it decodes. Arguments are the same.
    """

    def decode(
        self,
        bboxes: Tensor,
        pred_bboxes: Tensor,
        max_shape: Sequence[int] | None = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> Tensor:
        """Boxes from deltas, clipped to the pixels of the image.

        Args:
            bboxes: (N, 4) boxes that the deltas move.
            pred_bboxes: (N, 4 C) deltas.
            max_shape: Height and width of the image.
            wh_ratio_clip: Smallest factor on a side.
        """
        decoded = get_box_tensor(
            super().decode(bboxes, pred_bboxes, None, wh_ratio_clip)
        )
        corners = decoded.unflatten(-1, (-1, 2, 2))
        corners = torch.stack(
            [corners[..., 0, :] + 0.5, corners[..., 1, :] - 0.5], -2
        )
        if max_shape is not None:
            height, width = max_shape[:2]
            corners = torch.stack(
                [
                    corners[..., 0].clamp(0, width - 1),
                    corners[..., 1].clamp(0, height - 1),
                ],
                -1,
            )
        return corners.flatten(-3)


@MODELS.register_module()
class DetectronEnergyDetector(EnergyDetector):
    """``EnergyDetector`` with weights of Detectron's convention.

    Takes and gives boxes as mmdet has them. Arguments are
    ``EnergyDetector``'s; the coders should be ``DetectronBoxCoder``.
    """

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """See ``EnergyDetector.loss``."""
        inclusive = []
        for sample in batch_data_samples:
            pixel = _original_pixel(sample.metainfo)
            sample = sample.new()
            for name in ('gt_instances', 'ignored_instances'):
                if name in sample:
                    sample.set_field(
                        _moved_ends(
                            sample.get(name), ('bboxes',), [-p for p in pixel]
                        ),
                        name,
                    )
            inclusive.append(sample)
        return super().loss(batch_inputs, inclusive)

    def predict(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = True,
    ) -> SampleList:
        """See ``EnergyDetector.predict``."""
        samples = super().predict(batch_inputs, batch_data_samples, rescale)
        fields = ('bboxes', 'initial_bboxes')
        for sample in samples:
            pixel = (1, 1) if rescale else _original_pixel(sample.metainfo)
            for name in ('pred_instances', 'plain_instances'):
                if name in sample:
                    moved = _moved_ends(sample.get(name), fields, pixel)
                    sample.set_field(moved, name, dtype=InstanceData)
        return samples


def _original_pixel(meta: dict) -> tuple[float, float]:
    """Width and height of the original image's pixels in the network's."""
    return tuple(meta.get('scale_factor', (1, 1)))


def _moved_ends(
    instances: InstanceData, fields: Sequence[str], distance: Sequence[float]
) -> InstanceData:
    """A copy whose boxes end further right and down."""
    result = instances.new()
    for name in fields:
        if name in instances:
            corners = get_box_tensor(instances[name])
            result[name] = corners + corners.new_tensor([0, 0, *distance])
    return result
