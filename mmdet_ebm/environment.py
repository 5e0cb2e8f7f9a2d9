"""What the package needs: supported versions, restricted loading."""

import importlib

from packaging.version import Version

# package: (lowest supported, first unsupported, why there is an upper bound)
SUPPORTED_VERSIONS = {
    # Older ones run whatever a checkpoint asks for.
    'torch': ('2.6.0', None, ''),
    'mmengine': ('0.10.0', '1.0.0', 'its registries and hooks are used'),
    'mmcv': ('2.0.0', '3.0.0', 'its transforms and operators are used'),
    'mmdet': ('3.2.0', '4.0.0', 'its detectors are subclassed'),
}


def require_mmdet() -> None:
    """What each package does first that works with mmdet.

    ``mmdet_ebm.core`` and ``mmdet_ebm.ops`` need torch alone and do not call
    it.

    Raises:
        ImportError: See :func:`check_versions`.
    """
    check_versions()
    from .checkpoint_files import restrict_loading

    restrict_loading()


def check_versions() -> None:
    """Import what the package needs and compare versions.

    The import name decides, not the distribution's: forks that provide the
    same import under another name are as good. Which mmcv goes with which
    mmdet is for mmdet to say, and it does when it is imported.

    Raises:
        ImportError: If a package is missing or outside the supported range;
            the message names the range and what was found.
    """
    for name, (low, high, reason) in SUPPORTED_VERSIONS.items():
        wanted = f'{name}>={low}' + (f',<{high}' if high else '')
        try:
            found = importlib.import_module(name).__version__
        # mmdet asserts the mmcv that it was made for.
        except (ImportError, AssertionError) as error:
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
