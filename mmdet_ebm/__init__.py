"""Energy-based regression for MMDetection.

``custom_imports = dict(imports=['mmdet_ebm.models', 'mmdet_ebm.evaluation'])``
in a config registers everything. ``mmdet_ebm.core`` and ``mmdet_ebm.ops`` are
plain PyTorch and need no mmdet.
"""

from .version import __version__

__all__ = ['__version__']
