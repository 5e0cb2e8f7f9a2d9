"""The joint layers' kernels: compiled when first needed, called by ctypes."""

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

_SOURCE = Path(__file__).with_name('joint_layers.cpp')
# Sums over candidates lie on the stack: 3 MAX_WIDTH^2 vectors of 64 bytes.
_MAX_WIDTH = 64
# GNU's dialect, unlike the standard one, contracts a * b + c.
_FLAGS = ['-O3', '-march=native', '-std=gnu++17', '-shared', '-fPIC']


@cache
def joint_library(width: int) -> ctypes.CDLL | None:
    """The kernels for networks of this width.

    Compiled anew by each process (about two seconds), so that there is no
    cache that another machine or version could find.

    Returns:
        The library, or None for networks that are too wide and, with a
        warning in the log, where compiling fails: f is then computed by
        ordinary operations.
    """
    if width > _MAX_WIDTH:
        return None
    compiler = os.environ.get('CXX') or shutil.which('g++') or 'c++'
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, 'joint_layers.so')
        command = [
            *compiler.split(),
            *_FLAGS,
            f'-DWIDTH={width}',
            '-o',
            str(library),
            str(_SOURCE),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            return ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError) as error:
            logging.getLogger(__name__).warning(
                'cannot compile %s (%s): training takes about three times as '
                'long. %s',
                _SOURCE.name,
                error,
                getattr(error, 'stderr', None) or '',
            )
            return None


def pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    """Address of a contiguous tensor's data; null for None."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    """A struct of addresses."""
    return (ctypes.c_void_p * len(tensors))(
        *(tensor.data_ptr() for tensor in tensors)
    )
