"""Memory for large results on a CPU."""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

# Bytes; below, the allocator gives memory that was used before.
_LARGE = 1 << 22


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``torch.empty``, asking for large pages on a CPU.

    Filling ordinary pages for the first time takes longer than most of what
    is written to them here. It is advice, and where the system does not take
    it nothing changes.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    size = tensor.numel() * tensor.element_size()
    if device.type == 'cpu' and size >= _LARGE:
        madvise = _madvise()
        if madvise is not None:
            # Whole pages within the tensor's memory.
            start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            madvise(
                start, tensor.data_ptr() + size - start, mmap.MADV_HUGEPAGE
            )
    return tensor


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's function, or None where there is none for this."""
    if not hasattr(mmap, 'MADV_HUGEPAGE'):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function
