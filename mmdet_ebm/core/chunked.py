"""A loss whose gradients are computed chunk by chunk, together with it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .types import LossInfo

# Images and rows of a chunk, and the maps of these images -> loss and info.
LossOfChunk = Callable[
    [slice, slice, Sequence[Tensor]], tuple[Tensor, LossInfo]
]


def chunks_of(
    counts: Sequence[int], size: int, together: bool
) -> Iterator[tuple[slice, slice]]:
    """Divide the rows of a batch, which are in the order of its images.

    Args:
        counts: Rows of each image.
        size: Rows of a chunk at most.
        together: Whether rows of several images may share a chunk.

    Yields:
        Images and rows of each chunk; no chunk is empty. The images are
        those from the first row's to the last row's.
    """
    owners = [image for image, n in enumerate(counts) for _ in range(n)]
    start = 0
    for count in [len(owners)] if together else counts:
        for first in range(start, start + count, size):
            stop = min(first + size, start + count)
            images = slice(owners[first], owners[stop - 1] + 1)
            yield images, slice(first, stop)
        start += count


def chunked_loss(
    chunks: Sequence[tuple[slice, slice]],
    loss_of_chunk: LossOfChunk,
    maps: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> tuple[Tensor, LossInfo]:
    """The sum of a loss over the chunks of a batch.

    What a chunk needs for its gradients is freed before the next chunk runs.
    So the memory is that of one chunk, and nothing is evaluated twice. The
    gradients wait for the factor that the backward pass brings.

    Args:
        chunks: At least one, see :func:`chunks_of`.
        loss_of_chunk: The loss of a chunk; may use the parameters.
        maps: Tensors (N, ...) over the images of the batch.
        parameters: Leaf tensors that the loss depends on.

    Returns:
        The sum, once differentiable in the maps and parameters that require
        gradients, and the log-densities that all chunks saw.

    Raises:
        ValueError: If there is no chunk.
    """
    if not chunks:
        raise ValueError('expected at least one chunk, got none')
    infos: list[LossInfo] = []
    loss = _ChunkedLoss.apply(
        chunks, loss_of_chunk, infos, parameters, *maps, *parameters
    )
    return loss, LossInfo(
        torch.cat([info.truth for info in infos]),
        torch.cat([info.noise for info in infos]),
    )


class _ChunkedLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        chunks: Sequence[tuple[slice, slice]],
        loss_of_chunk: LossOfChunk,
        infos: list[LossInfo],
        parameters: Sequence[Tensor],
        *tensors: Tensor,
    ) -> Tensor:
        maps = tensors[: len(tensors) - len(parameters)]
        learned = [p for p in parameters if p.requires_grad]
        map_grads = [
            torch.zeros_like(m) if m.requires_grad else None for m in maps
        ]
        grads: list[Tensor] = []
        losses = []
        for images, rows in chunks:
            leaves = [
                m[images].detach().requires_grad_(m.requires_grad)
                for m in maps
            ]
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            with torch.enable_grad():
                loss, info = loss_of_chunk(images, rows, leaves)
                found = list(
                    torch.autograd.grad(
                        loss, [*wanted, *learned], materialize_grads=True
                    )
                )
            losses.append(loss.detach())
            infos.append(info)
            for grad in map_grads:
                if grad is not None:
                    grad[images] += found.pop(0)
            # The first gradients become the sums: one allocation less.
            if grads:
                for total, grad in zip(grads, found):
                    total += grad
            else:
                grads = found
            del leaves, wanted, found, loss
        of_learned = iter(grads)
        ctx.save_for_backward(
            *map_grads,
            *(
                next(of_learned) if p.requires_grad else None
                for p in parameters
            ),
        )
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (
            *(None,) * 4,
            *(None if g is None else g * grad for g in ctx.saved_tensors),
        )
