"""What torch reads once, when it is loaded: import this module before it.

A variable that is set already stays as it is.
"""

import os
import warnings

# Large pages, where a Linux system offers them: fresh memory on a CPU costs
# less (docs/speed.md).
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')

# Threads that wait for others give their core away. By default they keep it
# busy, and two trainings side by side keep each other from working.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

# What mmengine, mmcv and mmdet do, and who runs a tool can do nothing about.
for _message, _category in (
    ('pkg_resources is deprecated', UserWarning),
    (r'`torch\.cuda\.amp\.autocast', FutureWarning),
    ('torch.meshgrid: in an upcoming release', UserWarning),
    (r'Warning: The (bbox|polygon) is out of bounds', UserWarning),
):
    warnings.filterwarnings('ignore', _message, _category)
