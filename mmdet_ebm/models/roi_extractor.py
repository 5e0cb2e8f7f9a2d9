"""Precise RoI pooling over a feature pyramid, all levels in one call."""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from ..ops import FeatureSurface


@MODELS.register_module()
class PreciseRoIExtractor(BaseModule):
    """Pools boxes from the level that suits their size.

    A drop-in for mmdet's ``SingleRoIExtractor``, without its loop over levels
    and the device synchronisation that comes with it.

    Args:
        out_channels: Channels of every level.
        featmap_strides: Network-input pixels per cell of each level used; the
            detector may have more levels than these.
        output_size: Number of bins, one number or (along y, along x).
        finest_scale: Boxes with a geometric mean side below twice this many
            pixels are pooled from the first level; each doubling is one level
            more.
    """

    def __init__(
        self,
        out_channels: int = 256,
        featmap_strides: Sequence[int] = (4, 8, 16, 32),
        output_size: int | tuple[int, int] = 7,
        finest_scale: int = 56,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.featmap_strides = tuple(featmap_strides)
        self.output_size = (
            (output_size, output_size)
            if isinstance(output_size, int)
            else tuple(output_size)
        )
        self.finest_scale = finest_scale

    @property
    def num_inputs(self) -> int:
        """Number of levels used."""
        return len(self.featmap_strides)

    def surface(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> FeatureSurface:
        """Prepare the levels for any number of :meth:`pool` calls.

        Args:
            features: Maps (N, C, H_l, W_l), at least as many as strides.
            image_sizes: Height and width of each image inside its padding.

        Raises:
            ValueError: If levels are missing or have other channels.
        """
        if len(features) < self.num_inputs:
            raise ValueError(
                f'the energy model pools from {self.num_inputs} levels '
                f'(featmap_strides={self.featmap_strides}) and the detector '
                f'gives {len(features)}'
            )
        features = features[: self.num_inputs]
        if features[0].shape[1] != self.out_channels:
            raise ValueError(
                f'the energy model expects maps of {self.out_channels} '
                f'channels and the detector gives {features[0].shape[1]}'
            )
        return FeatureSurface(
            features, [1 / s for s in self.featmap_strides], image_sizes
        )

    def map_roi_levels(self, boxes: Tensor) -> Tensor:
        """Level (R,) int64 of boxes (R, 4), from the root of their area."""
        sides = (boxes[:, 2:] - boxes[:, :2]).detach().clamp(min=0)
        scale = sides.prod(1).sqrt() / self.finest_scale
        level = (scale + 1e-6).log2().floor().nan_to_num(0.0)
        return level.clamp(0, self.num_inputs - 1).long()

    def pool(
        self,
        surface: FeatureSurface,
        boxes: Tensor,
        image_index: Tensor,
        level: Tensor,
    ) -> Tensor:
        """Pooled features (R, C, P, Q); see ``FeatureSurface.pool``."""
        return surface.pool(boxes, image_index, level, self.output_size)

    def forward(
        self,
        feats: Sequence[Tensor],
        rois: Tensor,
        roi_scale_factor: float | None = None,
    ) -> Tensor:
        """mmdet's interface: rois (R, 5) with the image's index first."""
        boxes = rois[:, 1:]
        level = self.map_roi_levels(boxes)
        if roi_scale_factor is not None:
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            half = (boxes[:, 2:] - boxes[:, :2]) / 2 * roi_scale_factor
            boxes = torch.cat([centre - half, centre + half], 1)
        return self.pool(self.surface(feats), boxes, rois[:, 0].long(), level)
