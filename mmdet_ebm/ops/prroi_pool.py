r"""Precise RoI pooling: the exact mean of the feature surface over each bin.

A feature map is read as the continuous surface

.. math:: F(x, y) = \sum_{ij} f_{ij}\, \Lambda(x - j)\, \Lambda(y - i),
          \qquad \Lambda(t) = \max(0, 1 - |t|)

(zero outside the map), and a bin's value is the integral of F over the bin
divided by its area. Box coordinates times ``spatial_scale`` are used as they
are, without a half-pixel shift; a bin without area gives 0. What is not finite
stays where it is: a box with such a coordinate is NaN, a bin is not finite if
it lies on such a cell, and no other is touched. Outputs have
gradients in features and boxes, and those have gradients again, to any order.

Source: "Acquisition of Localization Confidence for Accurate Object
Detection", ECCV 2018, arXiv 1807.11590, section 3.3.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .boxes import filled
from .grid_sums import MEAN, PREFIX_INTEGRAL, GridLayout, GridSum

METHODS = ('auto', 'cells', 'prefix')
# Shortest bin, in cells.
_LEAST_BIN = 2**-10
# Share of a bin on cells that are not finite, above what rounding leaves.
_LEAST_SHARE = 1e-6
# Values of all maps up to which a copy of them costs next to nothing, 8 MiB of
# float32. One table of several levels then is quicker than a table for each:
# a sum over a table is a chain of small operations.
_FEW_VALUES = 1 << 21


class FeaturePyramid:
    """The feature levels of a batch, prepared once to be pooled many times.

    Two exact methods share one interface. ``'cells'`` sums the cells under
    each bin, in the features' precision; how many there are must be read back,
    which is free on a CPU. ``'prefix'`` reads the corners of each bin from
    prefix sums in float64: its cost does not depend on the box size and no
    shape on any value, so nothing waits for a GPU.

    Args:
        maps: One map (N, C, H_l, W_l) for each level, at least as many as
            strides; further ones are left alone. Half precision is pooled in
            float32.
        strides: Network-input pixels per cell of each level.
        image_sizes: Height and width of each image in network-input pixels.
            Given, a map ends where its image does: cells that only batch
            padding created count as outside, so that for equal features
            inside its image a box's value does not depend on the padding.
        finest_scale: Boxes with a geometric mean side below twice this many
            pixels belong to the first level, and each doubling to one level
            more. 14 cells of the first level by default.
        method: ``'cells'``, ``'prefix'`` or ``'auto'`` (cells on a CPU).

    Attributes:
        num_images: N.
        num_levels: Levels that are pooled from, one for each stride.
        channels: C.
        dtype: Of what is pooled, float32 or float64.
        image_sizes: As given.
        strides: As given, a tuple.
        finest_scale: As given, or its default.

    Raises:
        ValueError: On maps that do not form a pyramid of one batch.
    """

    def __init__(
        self,
        maps: Sequence[Tensor],
        strides: Sequence[float],
        image_sizes: Sequence[tuple[int, int]] | None = None,
        finest_scale: float | None = None,
        method: str = 'auto',
    ) -> None:
        self.strides = tuple(strides)
        maps = _checked_maps(maps, self.strides, image_sizes, method)
        first = maps[0]
        if method == 'auto':
            method = _method_for(first)
        self.method = method
        self.num_images, self.channels = first.shape[:2]
        self.num_levels = len(maps)
        self.image_sizes = image_sizes
        if finest_scale is None:
            finest_scale = 14 * self.strides[0]
        self.finest_scale = finest_scale
        self.dtype = (
            torch.float64 if first.dtype == torch.float64 else torch.float32
        )
        rule = PREFIX_INTEGRAL if method == 'prefix' else MEAN
        self._rules = (rule, rule)

        scales = [1 / stride for stride in self.strides]
        insides = [
            _inside(m, scale, image_sizes) for m, scale in zip(maps, scales)
        ]
        self.in_place = self.is_in_place(maps, method)
        if method == 'prefix':
            maps = [_prefix_sums(m) for m in maps]
        rows = [m.shape[0] * m.shape[2] * m.shape[3] for m in maps]
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

        def as_ints(values: Sequence[int]) -> Tensor:
            return filled(values, first, torch.int64)

        self._bases = as_ints(starts)
        self._row_lengths = as_ints([m.shape[3] for m in maps])
        self._image_rows = as_ints([m.shape[2] * m.shape[3] for m in maps])
        self._num_rows = [len(table) for table in self._tables]
        # Cells along y and x, for each level (row) and image (column).
        self._heights, self._widths = (
            torch.stack(
                [
                    as_ints([sizes[axis] for sizes in level])
                    for level in insides
                ]
            )
            for axis in (0, 1)
        )
        self._scales = filled(scales, first, self.dtype)
        self._levels = torch.arange(self.num_levels, device=first.device)
        self._images = torch.arange(self.num_images, device=first.device)

    @staticmethod
    def is_in_place(maps: Sequence[Tensor], method: str = 'auto') -> bool:
        """Whether maps are tables of cells as they lie in memory.

        Then a pyramid is no copy of them and costs nothing. So it is for
        channels-last maps in single or double precision, pooled by cells.
        Inference tensors are copied, since autograd could not save a view,
        and so are several small maps: in one table they are pooled together.
        """
        if method == 'auto':
            method = _method_for(maps[0])
        if len(maps) > 1 and _are_small(maps):
            return False
        return method == 'cells' and all(
            m.dtype == maps[0].dtype
            and m.dtype in (torch.float32, torch.float64)
            and not m.is_inference()
            and m.permute(0, 2, 3, 1).is_contiguous()
            for m in maps
        )

    @staticmethod
    def costs_little(maps: Sequence[Tensor]) -> bool:
        """Whether a pyramid is no copy of the maps, or a small one."""
        return _are_small(maps) or FeaturePyramid.is_in_place(maps)

    def map_levels(self, boxes: Tensor) -> Tensor:
        """Level (R,) int64 of boxes (R, 4), from the root of their area.

        Source: "Feature Pyramid Networks for Object Detection", CVPR 2017,
        arXiv 1612.03144, equation 1.
        """
        sides = (boxes[:, 2:] - boxes[:, :2]).detach().clamp(min=0)
        scale = sides.prod(1).sqrt() / self.finest_scale
        level = (scale + 1e-6).log2().floor().nan_to_num(0.0)
        return level.clamp(0, self.num_levels - 1).long()

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

        Raises:
            ValueError: If an index is out of range (on a GPU, torch's error).
        """
        level = _in_range(level, self._levels, 'level')
        image_index = _in_range(image_index, self._images, 'image index')
        layout = GridLayout(
            base=self._bases[level] + image_index * self._image_rows[level],
            stride=self._row_lengths[level],
            width=self._widths[level, image_index],
            height=self._heights[level, image_index],
            num_rows=self._num_rows,
            table=level if len(self._tables) > 1 else None,
        )
        scaled = boxes.to(self.dtype) * self._scales[level][:, None]
        if self.method == 'prefix':
            scaled = scaled.double()
        scaled = _resolvable(scaled, output_size)
        x = _bin_edges(scaled[:, 0], scaled[:, 2], output_size[1])
        y = _bin_edges(scaled[:, 1], scaled[:, 3], output_size[0])
        pooled: Tensor = GridSum.apply(
            y, x, layout, self._rules, *self._tables
        )
        if self.method == 'prefix':
            pooled = pooled.diff(dim=1).diff(dim=2)
            lengths = y.diff(dim=1)[:, :, None] * x.diff(dim=1)[:, None, :]
            empty = (
                (scaled[:, 2] <= scaled[:, 0]) | (scaled[:, 3] <= scaled[:, 1])
            )[:, None, None]
            on_bad_cells = pooled.detach()[..., -1] > _LEAST_SHARE * lengths
            lengths = torch.where(on_bad_cells, torch.nan, lengths)
            lengths = torch.where(empty, 1, lengths)
            pooled = pooled[..., :-1] / lengths[..., None]
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
        method: See :class:`FeaturePyramid`.

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
    pyramid = FeaturePyramid([features], [1], method=method)
    image_index = rois[:, 0].detach().long()
    return pyramid.pool(
        rois[:, 1:].to(pyramid.dtype) * spatial_scale,
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


def _are_small(maps: Sequence[Tensor]) -> bool:
    return sum(m.numel() for m in maps) <= _FEW_VALUES


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(
            f'output_size must be one or two positive integers, got {size}'
        )
    return pair


def _in_range(index: Tensor, numbers: Tensor, name: str) -> Tensor:
    """The same index; not with square brackets, where -1 is the last."""
    try:
        return numbers.index_select(0, index)
    except IndexError as error:
        raise ValueError(
            f'{name} must be from 0 to {len(numbers) - 1}, got '
            f'{int(index.min())} to {int(index.max())}'
        ) from error


def _resolvable(boxes: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Boxes (R, 4) in cells, wide enough for bins that numbers can resolve.

    A shorter side becomes so long, about its centre. The surface hardly
    changes over such a length; but far from the origin the bins would have no
    length in float32, or be the difference of almost equal prefix sums. A
    coordinate that is not finite makes its box NaN.
    """
    first, last = boxes[:, :2], boxes[:, 2:]
    least = filled(output_size[::-1], boxes) * _LEAST_BIN
    length = last - first
    short = (length > 0) & (length < least)
    centre = (first + last) / 2
    wide = torch.cat([centre - least / 2, centre + least / 2], 1)
    wide = torch.where(short.repeat(1, 2), wide, boxes)
    return torch.where(boxes.isfinite().all(1, keepdim=True), wide, torch.nan)


def _prefix_sums(features: Tensor) -> Tensor:
    """Sums (N, C + 1, H + 1, W + 1) of all cells above and to the left.

    Cells that are not finite count as zero. The last channel counts them.
    """
    num, channels, height, width = features.shape
    cells = features.new_zeros(
        (num, channels + 1, height + 1, width + 1), dtype=torch.float64
    )
    cells[:, :-1, 1:, 1:] = features.nan_to_num(0.0, 0.0, 0.0)
    cells[:, -1, 1:, 1:] = ~features.isfinite().all(1)
    return cells.cumsum(2).cumsum(3)


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
    def forward(ctx: Any, dtype: torch.dtype, *maps: Tensor) -> Tensor:
        ctx.shapes = [m.shape for m in maps]
        ctx.dtypes = [m.dtype for m in maps]
        channels = maps[0].shape[1]
        sizes = [m.numel() // max(channels, 1) for m in maps]
        table = maps[0].new_empty((sum(sizes), channels), dtype=dtype)
        for block, cells in zip(table.split(sizes), maps):
            block.view(cells.shape[0], *cells.shape[2:], channels).copy_(
                cells.permute(0, 2, 3, 1)
            )
        return table

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
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


def _checked_maps(
    maps: Sequence[Tensor],
    strides: Sequence[float],
    image_sizes: Sequence[tuple[int, int]] | None,
    method: str,
) -> Sequence[Tensor]:
    """The maps that have a stride."""
    if method not in METHODS:
        raise ValueError(f'method must be one of {METHODS}, got {method!r}')
    if not strides or not all(stride > 0 for stride in strides):
        raise ValueError(f'strides must be positive numbers, got {strides}')
    if len(maps) < len(strides):
        raise ValueError(
            f'the energy model pools from {len(strides)} levels '
            f'(strides={strides}) and the detector gives {len(maps)}'
        )
    maps = maps[: len(strides)]
    for level, features in enumerate(maps):
        if features.dim() != 4 or features.shape[:2] != maps[0].shape[:2]:
            raise ValueError(
                'features must be maps (N, C, H, W) with the same N and C, '
                f'got {tuple(features.shape)} at level {level} and '
                f'{tuple(maps[0].shape)} at level 0'
            )
    if image_sizes is not None and len(image_sizes) != len(maps[0]):
        raise ValueError(
            f'got {len(image_sizes)} image sizes for {len(maps[0])} images'
        )
    return maps
