"""A light feature pyramid on a frozen detector's maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.utils import OptMultiConfig
from mmengine.model import BaseModule
from torch import Tensor, nn


@MODELS.register_module()
class EnergyNeck(BaseModule):
    """Maps of equal channels from maps of any channels, for pooling.

    A 1x1 convolution of each map, the coarser sum added to it, then a 3x3
    convolution. Nothing is normalised: statistics of a batch fail for small
    ones, and those of an image, as of groups of channels, depend on its
    padding, which the value of a box must not.

    Args:
        in_channels: Of each map, finest first.
        out_channels: Of all maps that it gives.
        init_cfg: mmengine's initialisation; by default an FPN's.

    Source: "Feature Pyramid Networks for Object Detection", CVPR 2017,
    arXiv 1612.03144, figure 3.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 64,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(
            init_cfg
            or dict(type='Xavier', layer='Conv2d', distribution='uniform')
        )
        if not in_channels or min(*in_channels, out_channels, 1) < 1:
            raise ValueError(
                'in_channels must be positive numbers, one for each map, and '
                f'out_channels one, got {tuple(in_channels)} and '
                f'{out_channels}'
            )
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, out_channels, 1) for channels in in_channels
        )
        self.outputs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1)
            for _ in in_channels
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(N, C_l, H_l, W_l) of each level, finest first -> (N, C, H_l, W_l).

        Raises:
            ValueError: If maps are missing or have other channels.
        """
        channels = tuple(m.shape[1] for m in maps)
        if channels != self.in_channels:
            raise ValueError(
                f'the neck of the energy model expects maps of '
                f'{self.in_channels} channels and the detector gives '
                f'{channels}'
            )
        if maps[0].device.type == 'cpu':  # quicker, and pooled in place
            maps = [
                m.contiguous(memory_format=torch.channels_last) for m in maps
            ]
        sums = [
            lateral(m) for lateral, m in zip(self.laterals, maps, strict=True)
        ]
        for fine, coarse in zip(sums[-2::-1], sums[:0:-1]):
            fine += F.interpolate(coarse, fine.shape[-2:], mode='nearest')
        return [output(total) for output, total in zip(self.outputs, sums)]
