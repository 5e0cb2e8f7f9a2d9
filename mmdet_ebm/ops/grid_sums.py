r"""Weighted sums of feature cells on tensor-product grids, smooth in the grid.

Everything here evaluates, for K grids at once,

.. math:: G[k, p, q] = \sum_{i, j} A_y[k, p, i]\, A_x[k, q, j]\, f[k, i, j]

where the rows of :math:`A_x` and :math:`A_y` come from the grids' edge
coordinates by a *rule*. A rule has few non-zero weights per row (its taps):
a grid value is a short bag of table rows, nothing has size K x C x H x W.

A gradient with respect to an edge is again such a sum, under another rule
(:attr:`Rule.derivative`), and the gradient with respect to the table is its
adjoint. So the two autograd functions below are differentiable any number of
times in table and edges.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

# Cell indices and weights, both (K, Q, n).
Taps = tuple[Tensor, Tensor]

# Upper bound on the gathered weights of one chunk; keeps the working set of a
# step near the caches on a CPU and bounds the memory of the adjoint anywhere.
_TAPS_PER_CHUNK = 1 << 21
# The same for the values of a chunk; larger ones would get fresh memory.
_OUTPUTS_PER_CHUNK = 1 << 21
# Grids that are added to a map together, where they lie near each other, and
# the cells that they may reach then in any case.
_GRIDS_PER_BLOCK = 64
_CELLS_PER_BLOCK = 1 << 10
# The same for the values that a box gradient multiplies and sums up.
_VALUES_PER_CHUNK = 1 << 19


@dataclass(frozen=True)
class GridLayout:
    """Where the cells of each of the K grids lie in the flat tables.

    Attributes:
        base: (K,) int64, table row of the grid's cell (0, 0).
        stride: (K,) int64, table rows from a row of its map to the next.
        width: (K,) int64, number of cells in a row of its map.
        height: (K,) int64, number of rows of its map.
        num_rows: Rows of each table.
        table: (K,) int64, the table of the grid; None where there is one only.
    """

    base: Tensor
    stride: Tensor
    width: Tensor
    height: Tensor
    num_rows: Sequence[int]
    table: Tensor | None = None

    def __getitem__(self, item: slice | Tensor) -> 'GridLayout':
        return GridLayout(
            self.base[item],
            self.stride[item],
            self.width[item],
            self.height[item],
            self.num_rows,
            None if self.table is None else self.table[item],
        )


# --------------------------------------------------------------------------
# Rules: edges (K, E) and axis sizes (K,) -> cell indices and weights (K, Q, n)


def _cell_of(edges: Tensor) -> Tensor:
    """Index of the cell at or before each coordinate; safe for NaN and inf."""
    return edges.detach().nan_to_num(0.0).clamp(-(2**30), 2**30).floor().long()


def _extent(edges: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """First and last cell under each bin, cut to the map's reach [-1, N]."""
    inside = torch.minimum(
        edges.detach().nan_to_num(0.0).clamp(min=-1),
        sizes[:, None].to(edges.dtype),
    )
    return inside[:, :-1].floor().long(), inside[:, 1:].ceil().long()


def _mean_taps(edges: Tensor, sizes: Tensor, num_taps: int) -> Taps:
    """Mean of the linear interpolant over [e_q, e_q+1]: Q = E - 1 rows."""
    first, last = _extent(edges, sizes)
    cells = first[..., None] + torch.arange(num_taps, device=edges.device)
    left = edges[:, :-1, None] - cells
    right = edges[:, 1:, None] - cells
    # The hat's two linear pieces; a product of a length and a mean height has
    # no cancellation, however short the bin.
    l0, r0 = left.clamp(-1, 0), right.clamp(-1, 0)
    l1, r1 = left.clamp(0, 1), right.clamp(0, 1)
    integral = (r0 - l0) * (1 + (l0 + r0) / 2) + (r1 - l1) * (
        1 - (l1 + r1) / 2
    )
    length = edges[:, 1:, None] - edges[:, :-1, None]
    weights = integral / torch.where(length > 0, length, 1)
    # Written so that NaN stays NaN: an invalid box must not look like a zero.
    weights = torch.where(length <= 0, 0, weights)
    # Cells beyond the bin, which a larger one of the chunk asks for, have no
    # weight and are not read either: zero times infinity is not zero.
    return torch.minimum(cells, last[..., None]), weights


def _value_taps(edges: Tensor, sizes: Tensor, num_taps: int) -> Taps:
    """The linear interpolant at each edge: Q = E rows, 2 taps."""
    del sizes, num_taps
    first = _cell_of(edges)
    u = edges - first
    # A cell without weight is not read, as above.
    second = first + (u > 0)
    return (torch.stack([first, second], -1), torch.stack([1 - u, u], -1))


def _slope_taps(edges: Tensor, sizes: Tensor, num_taps: int) -> Taps:
    """The interpolant's derivative at each edge (from the right at a cell)."""
    weights = _value_taps(edges, sizes, num_taps)[1]
    first = _cell_of(edges)
    sign = torch.stack([-torch.ones_like(edges), torch.ones_like(edges)], -1)
    return torch.stack([first, first + 1], -1), sign + 0 * weights


def _prefix_taps(order: int) -> Callable[[Tensor, Tensor, int], Taps]:
    """Taps into prefix sums S[r] = f[0] + .. + f[r-1] (N + 1 of them).

    With cell j = floor(x) and u = x - j, the integral of the interpolant up to
    x is S[j] + a f[j] + b f[j+1], a = 1 - (1-u)^2/2 and b = u^2/2, which is a
    combination of S[j], S[j+1] and S[j+2]. ``order`` differentiates it.
    """

    def taps(edges: Tensor, sizes: Tensor, num_taps: int) -> Taps:
        del num_taps
        last = sizes[:, None].to(edges.dtype)
        # Beyond [-1, N] the integral is constant.
        x = torch.minimum(edges.clamp(min=-1), last)
        cell = _cell_of(x)
        u = x - cell
        if order == 0:
            a, b = 1 - (1 - u).square() / 2, u.square() / 2
            weights = (1 - a, a - b, b)
        elif order == 1:
            weights = (u - 1, 1 - 2 * u, u)
        else:
            inside = ((edges > -1) & (edges < last)).to(edges.dtype) + 0 * u
            weights = (inside, -2 * inside, inside)
        cells = torch.stack([cell, cell + 1, cell + 2], -1)
        # S has a row more than f, and S[r] = S[N] beyond.
        return cells.clamp(min=0).minimum(sizes[:, None, None]), torch.stack(
            weights, -1
        )

    return taps


@dataclass(frozen=True)
class Rule:
    """How edge coordinates become weights along one axis.

    Attributes:
        taps: ``(edges, sizes, num_taps) -> (cells, weights)``, both (K, Q, n).
        derivative: Rule of the derivative with respect to the edges, or None
            where it is zero almost everywhere.
        is_mean: Rows belong to the bins between edges rather than to edges.
        fixed_taps: Number of taps; 0 where it depends on the bins.
        extra: Table cells along the axis beyond the map's size.
    """

    taps: Callable[[Tensor, Tensor, int], Taps]
    derivative: Optional['Rule'] = None
    is_mean: bool = False
    fixed_taps: int = 0
    extra: int = 0


SLOPE = Rule(_slope_taps, fixed_taps=2)
VALUE = Rule(_value_taps, SLOPE, fixed_taps=2)
MEAN = Rule(_mean_taps, VALUE, is_mean=True)

PREFIX_SLOPE = Rule(_prefix_taps(2), fixed_taps=3, extra=1)
PREFIX_VALUE = Rule(_prefix_taps(1), PREFIX_SLOPE, fixed_taps=3, extra=1)
PREFIX_INTEGRAL = Rule(_prefix_taps(0), PREFIX_VALUE, fixed_taps=3, extra=1)


# --------------------------------------------------------------------------
# From rules to bags of table rows


def _bags(
    y: Tensor,
    x: Tensor,
    layout: GridLayout,
    rules: tuple[Rule, Rule],
    num_taps: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which rows of a table make up each grid value.

    Returns:
        Rows and weights, both (K * P * Q, n), and which values (K, P, Q) have
        a weight at all; None for prefix sums, which are finite everywhere.
    """
    rows, row_weights = rules[0].taps(y, layout.height, num_taps[0])
    cols, col_weights = rules[1].taps(x, layout.width, num_taps[1])
    height = (layout.height + rules[0].extra)[:, None, None]
    width = (layout.width + rules[1].extra)[:, None, None]
    row_weights = torch.where((rows >= 0) & (rows < height), row_weights, 0)
    col_weights = torch.where((cols >= 0) & (cols < width), col_weights, 0)
    reads = None
    if not rules[0].extra:
        # != is True for NaN.
        reads = (row_weights != 0).any(-1)[:, :, None] & (
            col_weights != 0
        ).any(-1)[:, None, :]
    rows = rows.clamp(min=0).minimum(height - 1) * layout.stride[:, None, None]
    cols = cols.clamp(min=0).minimum(width - 1) + layout.base[:, None, None]
    bag = num_taps[0] * num_taps[1]
    # Half the memory, which is what the many taps of a bag cost.
    index = _over_bags(rows.int(), cols.int(), torch.add)
    weights = _over_bags(row_weights, col_weights, torch.mul)
    return index.view(-1, bag), weights.view(-1, bag), reads


def _over_bags(
    along_y: Tensor,
    along_x: Tensor,
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Taps (K, P, n) and (K, Q, m) of each pair: (K, P, Q, n * m)."""
    per_row, per_col = along_y.shape[2], along_x.shape[2]
    along_y = along_y[..., None].expand(-1, -1, -1, per_col).flatten(2)
    along_x = along_x[:, :, None].expand(-1, -1, per_row, -1).flatten(2)
    # Over a whole bag at a time: loops over a few taps are several times
    # slower.
    return combine(along_y[:, :, None], along_x[:, None])


def _chunks(
    y: Tensor,
    x: Tensor,
    layout: GridLayout,
    rules: tuple[Rule, Rule],
    channels: int,
) -> Iterator[tuple[slice | Tensor, int, tuple[int, int]]]:
    """Yield ``(grids, table, num_taps)``: which of the K grids, and how.

    In one table, rules with fixed taps give chunks of equal size without
    looking at any value. The mean rule's tap count depends on the bins: there
    the grids are sorted by extent, so that small boxes do not pay for large
    ones; and by table, if there are several. That reads values back and is
    meant for the CPU, where it costs nothing.
    """
    num_grids = y.shape[0]
    num_values = y.shape[1] * x.shape[1]
    most = max(1, _OUTPUTS_PER_CHUNK // max(1, num_values * channels))
    is_mean = rules[0].is_mean or rules[1].is_mean
    if not is_mean and layout.table is None:
        taps = (rules[0].fixed_taps, rules[1].fixed_taps)
        size = max(1, _TAPS_PER_CHUNK // (num_values * taps[0] * taps[1]))
        for start in range(0, num_grids, size):
            yield slice(start, start + size), 0, taps
        return
    extents = []
    for edges, sizes, rule in (
        (y, layout.height, rules[0]),
        (x, layout.width, rules[1]),
    ):
        if rule.is_mean:
            first, last = _extent(edges, sizes)
            extents.append((last - first + 1).clamp(min=1).amax(1))
        else:
            extents.append(torch.full_like(sizes, rule.fixed_taps))
    spans = torch.stack(extents, 1)
    if layout.table is None and 0 < num_grids <= most:
        rows, cols = spans.amax(0).tolist()
        if num_grids * num_values * rows * cols <= _TAPS_PER_CHUNK:
            yield slice(0, num_grids), 0, (rows, cols)
            return
    order = spans.prod(1).argsort(stable=True)
    ends = [num_grids]
    if layout.table is not None:
        order = order[layout.table[order].argsort(stable=True)]
        ends = (
            layout.table.bincount(minlength=len(layout.num_rows))
            .cumsum(0)
            .tolist()
        )
    start = 0
    for table, end in enumerate(ends):
        while start < end:
            # The last grid of a chunk is its largest; shrink until it fits.
            stop = min(end, start + most)
            while True:
                rows, cols = spans[order[start:stop]].amax(0).tolist()
                cost = (stop - start) * num_values * rows * cols
                if cost <= _TAPS_PER_CHUNK or stop - start == 1:
                    break
                stop = start + (stop - start) // 2
            yield order[start:stop], table, (rows, cols)
            start = stop


def _grid_shape(
    y: Tensor, x: Tensor, rules: tuple[Rule, Rule]
) -> tuple[int, int, int]:
    return (
        y.shape[0],
        y.shape[1] - rules[0].is_mean,
        x.shape[1] - rules[1].is_mean,
    )


def _edge_gradients(
    tables: Sequence[Tensor],
    sums: Tensor,
    grad: Tensor,
    y: Tensor,
    x: Tensor,
    layout: GridLayout,
    rules: tuple[Rule, Rule],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of ``(sums * grad).sum()`` in y and x.

    ``sums`` is ``GridSum.apply(y, x, ..., *tables)``. Some grids at a time:
    the terms are many times larger than the result, and stay in the caches
    that way.
    """
    needs = [
        need and rule.derivative is not None
        for need, rule in zip(needs, rules)
    ]
    if not any(needs):
        return [None, None]
    size = max(1, _VALUES_PER_CHUNK // max(1, sums.shape[1:].numel()))
    # split, not slices: those would each get a gradient of full size.
    parts = zip(*(t.split(size) for t in (sums, grad, y, x)))
    grads = zip(
        *(
            _edge_gradients_of_part(
                tables,
                some_sums,
                some_grads,
                some_y,
                some_x,
                layout[slice(i * size, (i + 1) * size)],
                rules,
                needs,
            )
            for i, (some_sums, some_grads, some_y, some_x) in enumerate(parts)
        )
    )
    return [
        torch.cat(pieces) if need else None
        for pieces, need in zip(grads, needs)
    ]


def _edge_gradients_of_part(
    tables: Sequence[Tensor],
    sums: Tensor,
    grad: Tensor,
    y: Tensor,
    x: Tensor,
    layout: GridLayout,
    rules: tuple[Rule, Rule],
    needs: Sequence[bool],
) -> list[Any]:
    grads: list[Any] = [None, None]
    weighted = None
    for axis, (edges, rule) in enumerate(((y, rules[0]), (x, rules[1]))):
        if not needs[axis]:
            continue
        below = tuple(
            rule.derivative if a == axis else rules[a] for a in (0, 1)
        )
        slopes = GridSum.apply(y, x, layout, below, *tables)
        if not rule.is_mean:
            grads[axis] = (slopes * grad).sum(-1).sum(2 - axis)
            continue
        # mean = integral / length: d/de_hi = (value_hi - mean) / length and
        # d/de_lo = (mean - value_lo) / length.
        if weighted is None:
            weighted = (sums * grad).sum(-1)
        dim = 1 + axis
        n = edges.shape[1] - 1
        length = edges[:, 1:] - edges[:, :-1]
        length = torch.where(length > 0, length, float('inf'))
        mean = weighted.sum(2 - axis)
        hi = (slopes.narrow(dim, 1, n) * grad).sum(-1).sum(2 - axis)
        lo = (slopes.narrow(dim, 0, n) * grad).sum(-1).sum(2 - axis)
        grads[axis] = F.pad((hi - mean) / length, (1, 0)) + F.pad(
            (mean - lo) / length, (0, 1)
        )
    return grads


def _blocks(layout: GridLayout, num_grids: int) -> Iterator[slice]:
    """Grids of one map that follow each other, some at a time."""
    table = layout.base if layout.table is None else layout.table
    differs = (layout.base.diff() != 0) | (table.diff() != 0)
    ends = [*(differs.nonzero()[:, 0] + 1).tolist(), num_grids]
    start = 0
    for end in ends:
        for first in range(start, end, _GRIDS_PER_BLOCK):
            yield slice(first, min(first + _GRIDS_PER_BLOCK, end))
        start = end


def _axis_weights(
    edges: Tensor, sizes: Tensor, rule: Rule
) -> tuple[Tensor, int, int]:
    """A rule as matrices over the cells that some grids of a map reach.

    Returns:
        Weights (K, Q, n) of n cells, the first cell, and how many of them a
        single grid reaches at most.
    """
    taps = rule.fixed_taps
    if rule.is_mean:
        first, last = _extent(edges, sizes)
        taps = int((last - first).max()) + 1
    cells, weights = rule.taps(edges, sizes, max(1, taps))
    size = (sizes + rule.extra)[:, None, None]
    weights = torch.where((cells >= 0) & (cells < size), weights, 0)
    cells = cells.clamp(min=0).minimum(size - 1)
    lowest, highest = cells.flatten(1).aminmax(dim=1)
    start = int(lowest.min())
    matrix = weights.new_zeros(
        *weights.shape[:2], int(highest.max()) - start + 1
    ).scatter_add_(2, cells - start, weights)
    return matrix, start, int((highest - lowest).max()) + 1


def _scatter_block(
    table: Tensor,
    values: Tensor,
    y: Tensor,
    x: Tensor,
    layout: GridLayout,
    rules: tuple[Rule, Rule],
) -> None:
    """Add grids (K, P, Q, C) of one map to the cells of its table.

    As the weights are products of one along y and one along x, so is the sum:
    two matrix products over the cells that the grids reach together, the
    second of which adds up the grids. Candidates of an object lie on the same
    cells; grids apart from each other are divided.
    """
    along_y, top, rows = _axis_weights(y, layout.height, rules[0])
    along_x, left, cols = _axis_weights(x, layout.width, rules[1])
    grids, _, num_cols, channels = values.shape
    height, width = along_y.shape[2], along_x.shape[2]
    if grids > 1 and (
        height * width > 4 * rows * cols + _CELLS_PER_BLOCK
        or grids * num_cols * height * channels > _OUTPUTS_PER_CHUNK
    ):
        for half in (slice(0, grids // 2), slice(grids // 2, grids)):
            _scatter_block(
                table, values[half], y[half], x[half], layout[half], rules
            )
        return
    # (K, Q, height, C), and then (width, height, C).
    partial = torch.matmul(
        along_y.to(values.dtype).transpose(1, 2)[:, None],
        values.transpose(1, 2),
    )
    total = along_x.to(values.dtype).flatten(0, 1).t() @ partial.view(
        grids * num_cols, height * channels
    )
    stride = int(layout.stride[0])
    start = int(layout.base[0]) + top * stride + left
    table.as_strided(
        (width, height, channels),
        (channels, stride * channels, 1),
        start * channels,
    ).add_(total.view(width, height, channels))


class GridSum(Function):
    """``(y (K, Ey), x (K, Ex), layout, rules, *tables) -> (K, P, Q, C)``.

    Each table is (L, C); see the top of this module.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        layout: GridLayout,
        rules: tuple[Rule, Rule],
        *tables: Tensor,
    ) -> Tensor:
        first = tables[0]
        shape = (*_grid_shape(y, x, rules), first.shape[1])
        out = first.new_empty(shape)
        for grids, table, taps in _chunks(y, x, layout, rules, shape[-1]):
            index, weights, reads = _bags(
                y[grids], x[grids], layout[grids], rules, taps
            )
            values = F.embedding_bag(
                index,
                tables[table],
                mode='sum',
                per_sample_weights=weights.to(first.dtype),
            ).view(-1, *shape[1:])
            if reads is not None and not reads.all():
                unread = (~reads).flatten().nonzero()[:, 0]
                values.view(-1, shape[-1]).index_fill_(0, unread, 0)
            if isinstance(grids, slice) and len(values) == len(out):
                out = values
            elif isinstance(grids, slice):
                out[grids] = values
            else:
                out.index_copy_(0, grids, values)
        ctx.save_for_backward(y, x, out, *tables)
        ctx.layout, ctx.rules = layout, rules
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        y, x, sums, *tables = ctx.saved_tensors
        grad_tables = [None] * len(tables)
        if any(ctx.needs_input_grad[4:]):
            grad_tables = GridScatter.apply(grad, y, x, ctx.layout, ctx.rules)
        grad_y, grad_x = _edge_gradients(
            tables,
            sums,
            grad,
            y,
            x,
            ctx.layout,
            ctx.rules,
            ctx.needs_input_grad[:2],
        )
        return grad_y, grad_x, None, None, *grad_tables


class GridScatter(Function):
    """Adjoint of :class:`GridSum` in its tables: (K, P, Q, C) -> (L, C)s."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        y: Tensor,
        x: Tensor,
        layout: GridLayout,
        rules: tuple[Rule, Rule],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(values, y, x)
        ctx.layout, ctx.rules = layout, rules
        channels = values.shape[-1]
        tables = [values.new_zeros(rows, channels) for rows in layout.num_rows]
        if values.device.type == 'cpu':
            for block in _blocks(layout, len(values)):
                table = 0 if layout.table is None else layout.table[block][0]
                _scatter_block(
                    tables[int(table)],
                    values[block],
                    y[block],
                    x[block],
                    layout[block],
                    rules,
                )
            return tuple(tables)
        for grids, table, taps in _chunks(y, x, layout, rules, channels):
            index, weights, _ = _bags(
                y[grids], x[grids], layout[grids], rules, taps
            )
            flat = values[grids].reshape(-1, channels)
            weights = weights.to(values.dtype)
            # One tap of every bag at a time bounds the memory by the output's.
            for tap in range(index.shape[1]):
                tables[table].index_add_(
                    0, index[:, tap], flat * weights[:, tap, None]
                )
        return tuple(tables)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        values, y, x = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if not any(needs):
            return (None,) * 5
        # The edge gradients are those of its product with the values.
        grad_values = GridSum.apply(y, x, ctx.layout, ctx.rules, *grads)
        grad_y, grad_x = _edge_gradients(
            grads, grad_values, values, y, x, ctx.layout, ctx.rules, needs[1:3]
        )
        return grad_values, grad_y, grad_x, None, None
