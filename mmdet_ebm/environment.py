"""What the package needs: supported versions, loadable checkpoints."""

import importlib
from pickle import UnpicklingError

import numpy as np
import torch
from packaging.version import Version

# package: (lowest supported, first unsupported, why there is an upper bound)
SUPPORTED_VERSIONS = {
    'torch': ('2.0.0', None, ''),
    'mmengine': ('0.10.0', '1.0.0', 'its registries and hooks are used'),
    'mmcv': ('2.0.0', '2.2.0', 'mmdet 3.3 refuses newer ones'),
    'mmdet': ('3.2.0', '4.0.0', 'its detectors are subclassed'),
}

# Methods that mmengine's HistoryBuffer pickles by name.
_STATISTICS = ('min', 'max', 'mean', 'current')


def require_mmdet() -> None:
    """What each package does first that works with mmdet.

    ``mmdet_ebm.core`` and ``mmdet_ebm.ops`` need torch alone and do not call
    it.

    Raises:
        ImportError: See :func:`check_versions`.
    """
    check_versions()
    allow_own_checkpoints()


def check_versions() -> None:
    """Import what the package needs and compare versions.

    The import name decides, not the distribution's: forks that provide the
    same import under another name are as good.

    Raises:
        ImportError: If a package is missing or outside the supported range;
            the message names the range and what was found.
    """
    for name, (low, high, reason) in SUPPORTED_VERSIONS.items():
        wanted = f'{name}>={low}' + (f',<{high}' if high else '')
        try:
            found = importlib.import_module(name).__version__
        except ImportError as error:
            raise ImportError(
                f'mmdet_ebm needs {wanted}; importing {name} failed: {error}'
            ) from error
        # "2.13.0+cpu" is a 2.13.0.
        version = Version(Version(found).base_version)
        if version < Version(low) or (high and version >= Version(high)):
            raise ImportError(
                f'mmdet_ebm needs {wanted}, found {found}'
                + (f' ({reason})' if high else '')
            )


def allow_own_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    From torch 2.6 on, unpickling is restricted to an allow-list, which lacks
    what mmengine stores beside the weights: the loss history and numpy values
    in the scheduler and message states. Nothing added here runs code from the
    file; the ``getattr`` by which HistoryBuffer names its statistics is
    replaced by one that does only that.
    """
    if Version(torch.__version__) < Version('2.6'):
        return  # weights_only is not the default there
    from mmengine.logging.history_buffer import HistoryBuffer

    def statistic_of(owner, name):
        if owner is not HistoryBuffer or name not in _STATISTICS:
            raise UnpicklingError(
                f'refused to read attribute {name!r} of {owner!r} while '
                'loading a checkpoint'
            )
        return getattr(owner, name)

    multiarray = (getattr(np, '_core', None) or np.core).multiarray
    dtypes = [type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8')]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (statistic_of, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            multiarray._reconstruct,
            multiarray.scalar,
            *dtypes,
        ]
    )
