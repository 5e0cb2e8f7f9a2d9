"""Training: processes, exact resuming, mixed precision, noise, energy maps.

Importing this package registers the loops, the checkpoint hook and the
optimiser wrapper that ``tools/train.py`` puts into a config, and hooks that
measure the noise and draw energy maps.
"""

from ..environment import require_mmdet

require_mmdet()


from .bfloat16 import BFloat16OptimWrapper
from .checkpoints import AtomicCheckpointHook, latest_checkpoint
from .crops import remove_crops
from .energy_map_hook import EnergyMapHook
from .fit_density_hook import FitDensityHook
from .held_out import keep_images_aside
from .launch import (
    fit_at_the_end,
    join_processes,
    make_resumable,
    measure_noise,
    use_amp,
)
from .loops import ResumableEpochTrainLoop, ResumableIterTrainLoop
from .measure_noise_hook import MeasureNoiseHook

__all__ = [
    'AtomicCheckpointHook',
    'BFloat16OptimWrapper',
    'EnergyMapHook',
    'FitDensityHook',
    'MeasureNoiseHook',
    'ResumableEpochTrainLoop',
    'ResumableIterTrainLoop',
    'fit_at_the_end',
    'join_processes',
    'keep_images_aside',
    'latest_checkpoint',
    'make_resumable',
    'measure_noise',
    'remove_crops',
    'use_amp',
]
