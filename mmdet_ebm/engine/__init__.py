"""Training that runs in several processes and resumes where it was cut off.

Importing this package registers the loops, the hook and the optimiser wrapper
that ``tools/train.py`` puts into a config.
"""

from .bfloat16 import BFloat16OptimWrapper
from .checkpoints import AtomicCheckpointHook, latest_checkpoint
from .launch import join_processes, make_resumable, use_amp
from .loops import ResumableEpochTrainLoop, ResumableIterTrainLoop

__all__ = [
    'AtomicCheckpointHook', 'BFloat16OptimWrapper', 'ResumableEpochTrainLoop',
    'ResumableIterTrainLoop', 'join_processes', 'latest_checkpoint',
    'make_resumable', 'use_amp'
]
