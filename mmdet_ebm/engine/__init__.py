"""Training: several processes, exact resuming, mixed precision, energy maps.

Importing this package registers the loops, the checkpoint hook and the
optimiser wrapper that ``tools/train.py`` puts into a config, and a hook that
draws energy maps.
"""

from ..environment import require_mmdet

require_mmdet()


from .bfloat16 import BFloat16OptimWrapper
from .checkpoints import AtomicCheckpointHook, latest_checkpoint
from .energy_map_hook import EnergyMapHook
from .launch import join_processes, make_resumable, use_amp
from .loops import ResumableEpochTrainLoop, ResumableIterTrainLoop

__all__ = [
    'AtomicCheckpointHook',
    'BFloat16OptimWrapper',
    'EnergyMapHook',
    'ResumableEpochTrainLoop',
    'ResumableIterTrainLoop',
    'join_processes',
    'latest_checkpoint',
    'make_resumable',
    'use_amp',
]
