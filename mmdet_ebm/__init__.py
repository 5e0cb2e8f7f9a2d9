"""Energy-based regression for MMDetection.

``custom_imports = dict(imports=['mmdet_ebm.models', 'mmdet_ebm.evaluation'])``
in a config registers everything; ``mmdet_ebm.core`` and ``mmdet_ebm.ops`` are
plain PyTorch.
"""

from .environment import allow_own_checkpoints, check_versions
from .version import __version__

check_versions()
allow_own_checkpoints()

__all__ = ['__version__']
