r"""Precise RoI pooling: the exact mean of the feature surface over each bin.

A feature map is read as the continuous surface

.. math:: F(x, y) = \sum_{ij} f_{ij}\, \Lambda(x - j)\, \Lambda(y - i),
          \qquad \Lambda(t) = \max(0, 1 - |t|)

(zero outside the map), and a bin's value is the integral of F over the bin
divided by its area. Box coordinates times ``spatial_scale`` are used as they
are, without a half-pixel shift; a bin without area gives 0. Outputs have
gradients in features and boxes, and those have gradients again, to any order.

Source: "Acquisition of Localization Confidence for Accurate Object
Detection", ECCV 2018, arXiv 1807.11590, section 3.3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .grid_sums import MEAN, PREFIX_INTEGRAL, GridLayout, GridSum
from .memory import empty

METHODS = ('auto', 'cells', 'prefix')


class FeatureSurface:
    """The feature levels of a batch, prepared once to be pooled many times.

    Two exact methods share one interface. ``'cells'`` sums the cells under
    each bin, in the features' precision; how many there are must be read back,
    which is free on a CPU. ``'prefix'`` reads the corners of each bin from
    prefix sums in float64: its cost does not depend on the box size and no
    shape on any value, so nothing waits for a GPU.

    Args:
        features: One map (N, C, H_l, W_l) for each level. Half precision is
            pooled in float32.
        spatial_scales: Feature cells per network-input pixel, for each level.
        image_sizes: Height and width of each image in network-input pixels.
            Given, a map ends where its image does: cells that only batch
            padding created count as outside, so that for equal features
            inside its image a box's value does not depend on the padding.
        method: ``'cells'``, ``'prefix'`` or ``'auto'`` (cells on a CPU).

    Raises:
        ValueError: On maps that do not form a pyramid of one batch.
    """

    def __init__(
        self,
        features: Sequence[Tensor],
        spatial_scales: Sequence[float],
        image_sizes: Sequence[tuple[int, int]] | None = None,
        method: str = 'auto',
    ) -> None:
        _check_features(features, spatial_scales, image_sizes, method)
        first = features[0]
        if method == 'auto':
            method = _method_for(first)
        self.method = method
        self.num_images, self.channels = first.shape[:2]
        self.num_levels = len(features)
        self.dtype = (
            torch.float64 if first.dtype == torch.float64 else torch.float32
        )
        rule = PREFIX_INTEGRAL if method == 'prefix' else MEAN
        self._rules = (rule, rule)

        maps = features
        if method == 'prefix':
            maps = [
                nn.functional.pad(m.to(torch.float64), (1, 0, 1, 0))
                .cumsum(2)
                .cumsum(3)
                for m in maps
            ]
        rows = [m.shape[0] * m.shape[2] * m.shape[3] for m in maps]
        self.in_place = self.is_in_place(features, method)
        if self.in_place:
            self._tables = tuple(
                m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps
            )
            starts = [0] * self.num_levels
        else:
            self._tables = (
                _CellTable.apply(
                    torch.promote_types(maps[0].dtype, self.dtype), *maps
                ),
            )
            starts = [sum(rows[:i]) for i in range(self.num_levels)]

        # Filled, not copied from the host: a copy would wait for the device.
        def as_ints(values: Sequence[int]) -> Tensor:
            return (
                torch.stack(
                    [first.new_full((), v, dtype=torch.int64) for v in values]
                )
                if values
                else first.new_zeros(0, dtype=torch.int64)
            )

        self._bases = as_ints(starts)
        self._strides = as_ints([m.shape[3] for m in maps])
        self._image_rows = as_ints([m.shape[2] * m.shape[3] for m in maps])
        self._num_rows = [len(table) for table in self._tables]
        # Cells along y and x, for each level (row) and image (column).
        insides = [
            _inside(m, scale, image_sizes)
            for m, scale in zip(features, spatial_scales)
        ]
        self._heights, self._widths = (
            torch.stack(
                [
                    as_ints([sizes[axis] for sizes in level])
                    for level in insides
                ]
            )
            for axis in (0, 1)
        )
        self._scales = torch.stack(
            [first.new_full((), s, dtype=self.dtype) for s in spatial_scales]
        )

    @staticmethod
    def is_in_place(features: Sequence[Tensor], method: str = 'auto') -> bool:
        """Whether maps are tables of cells as they lie in memory.

        Then a surface is no copy of them and costs nothing. So it is for
        channels-last maps in single or double precision, pooled by cells;
        inference tensors are copied, since autograd could not save a view.
        """
        if method == 'auto':
            method = _method_for(features[0])
        return method == 'cells' and all(
            m.dtype == features[0].dtype
            and m.dtype in (torch.float32, torch.float64)
            and not m.is_inference()
            and m.permute(0, 2, 3, 1).is_contiguous()
            for m in features
        )

    def pool(
        self,
        boxes: Tensor,
        image_index: Tensor,
        level: Tensor,
        output_size: tuple[int, int],
    ) -> Tensor:
        """Mean of the surface over the bins of each box.

        Args:
            boxes: (R, 4) corners x1, y1, x2, y2 in network-input pixels.
            image_index: (R,) int64, the image each box lies in.
            level: (R,) int64, the level each box is pooled from.
            output_size: Number of bins along y and x, (P, Q).

        Returns:
            (R, C, P, Q) in float32, float64 for float64 features.
        """
        layout = GridLayout(
            base=self._bases[level] + image_index * self._image_rows[level],
            stride=self._strides[level],
            width=self._widths[level, image_index],
            height=self._heights[level, image_index],
            num_rows=self._num_rows,
            table=level if len(self._tables) > 1 else None,
        )
        scaled = boxes.to(self.dtype) * self._scales[level][:, None]
        if self.method == 'prefix':
            scaled = scaled.double()
        x = _bin_edges(scaled[:, 0], scaled[:, 2], output_size[1])
        y = _bin_edges(scaled[:, 1], scaled[:, 3], output_size[0])
        pooled = GridSum.apply(y, x, layout, self._rules, *self._tables)
        if self.method == 'prefix':
            pooled = pooled.diff(dim=1).diff(dim=2)
            lengths = y.diff(dim=1)[:, :, None] * x.diff(dim=1)[:, None, :]
            empty = (
                (scaled[:, 2] <= scaled[:, 0]) | (scaled[:, 3] <= scaled[:, 1])
            )[:, None, None]
            pooled = pooled / torch.where(empty, 1, lengths)[..., None]
            pooled = torch.where(empty[..., None], 0, pooled)
        return pooled.permute(0, 3, 1, 2).to(self.dtype)


def prroi_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    method: str = 'auto',
) -> Tensor:
    """Precise RoI pooling of one feature map.

    Args:
        features: (N, C, H, W) in float32, float64, or half precision, which is
            pooled in float32.
        rois: (K, 5): index of the image, then x1, y1, x2, y2 in the frame that
            ``spatial_scale`` maps to feature cells.
        output_size: Number of bins, one number or (along y, along x).
        spatial_scale: Feature cells per unit of the rois.
        method: See :class:`FeatureSurface`.

    Returns:
        (K, C, P, Q) in float32, or float64 for float64 features. Zero for rois
        without area or outside the map.

    Raises:
        ValueError: On wrong shapes.
    """
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ValueError(
            'rois must have the shape (K, 5): image index, x1, '
            f'y1, x2, y2; got {tuple(rois.shape)}'
        )
    surface = FeatureSurface([features], [spatial_scale], method=method)
    image_index = rois[:, 0].detach().long()
    return surface.pool(
        rois[:, 1:],
        image_index,
        torch.zeros_like(image_index),
        _pair(output_size),
    )


class PrRoIPool(nn.Module):
    """:func:`prroi_pool` as a layer, for example of mmdet's RoI extractors.

    Args:
        output_size: Number of bins, one number or (along y, along x).
        spatial_scale: Feature cells per network-input pixel.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        """See :func:`prroi_pool`."""
        return prroi_pool(features, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return (
            f'output_size={self.output_size}, '
            f'spatial_scale={self.spatial_scale}'
        )


def _method_for(features: Tensor) -> str:
    return 'cells' if features.device.type == 'cpu' else 'prefix'


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(
            f'output_size must be one or two positive integers, got {size}'
        )
    return pair


def _bin_edges(start: Tensor, stop: Tensor, num_bins: int) -> Tensor:
    """(R, num_bins + 1) edges; the outer ones are the box's own sides."""
    steps = (
        torch.arange(num_bins + 1, device=start.device, dtype=start.dtype)
        / num_bins
    )
    return torch.lerp(start[:, None], stop[:, None], steps)


class _CellTable(Function):
    """Maps (N, C, H_l, W_l) of all levels -> their cells (L, C) in one table.

    Levels and images follow each other, cells row by row: channels-last
    order, in one pass over memory.
    """

    @staticmethod
    def forward(ctx, dtype, *maps):
        ctx.shapes = [m.shape for m in maps]
        ctx.dtypes = [m.dtype for m in maps]
        channels = maps[0].shape[1]
        sizes = [m.numel() // max(channels, 1) for m in maps]
        table = empty((sum(sizes), channels), dtype, maps[0].device)
        for block, cells in zip(table.split(sizes), maps):
            block.view(cells.shape[0], *cells.shape[2:], channels).copy_(
                cells.permute(0, 2, 3, 1)
            )
        return table

    @staticmethod
    def backward(ctx, grad):
        sizes = [shape.numel() // max(shape[1], 1) for shape in ctx.shapes]
        return (
            None,
            *(
                block.view(shape[0], *shape[2:], shape[1])
                .permute(0, 3, 1, 2)
                .to(dtype)
                for block, shape, dtype in zip(
                    grad.split(sizes), ctx.shapes, ctx.dtypes
                )
            ),
        )


def _inside(
    features: Tensor,
    scale: float,
    image_sizes: Sequence[tuple[int, int]] | None,
) -> list[tuple[int, int]]:
    """Rows and columns of each image's own cells in a map (N, C, H, W)."""
    rows, cols = features.shape[2:]
    if image_sizes is None:
        return [(rows, cols)] * len(features)
    return [
        (
            min(rows, math.ceil(height * scale)),
            min(cols, math.ceil(width * scale)),
        )
        for height, width in image_sizes
    ]


def _check_features(features, spatial_scales, image_sizes, method) -> None:
    if method not in METHODS:
        raise ValueError(f'method must be one of {METHODS}, got {method!r}')
    if len(features) == 0 or len(features) != len(spatial_scales):
        raise ValueError(
            'expected one spatial scale for each feature level, '
            f'got {len(features)} levels and '
            f'{len(spatial_scales)} scales'
        )
    for level, feature in enumerate(features):
        if feature.dim() != 4 or feature.shape[:2] != features[0].shape[:2]:
            raise ValueError(
                'features must be maps (N, C, H, W) with the same N and C, '
                f'got {tuple(feature.shape)} at level {level} and '
                f'{tuple(features[0].shape)} at level 0'
            )
    if image_sizes is not None and len(image_sizes) != len(features[0]):
        raise ValueError(
            f'got {len(image_sizes)} image sizes for {len(features[0])} images'
        )
