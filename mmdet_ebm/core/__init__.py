"""The method in plain PyTorch: noise, losses, ascent. Imports no mmdet."""

from .ascent import AscentResult, gradient_ascent, stopping_ascent
from .langevin import langevin_chain
from .losses import (DSM, KLDIS, MLIS, MLMCMC, NCE, SM, IoUNet, NCEPlus,
                     relative_iou)
from .noise import GaussianMixtureNoise, noise_logprob, sample_noise
from .types import LogDensityFn

__all__ = [
    'AscentResult', 'DSM', 'GaussianMixtureNoise', 'IoUNet', 'KLDIS',
    'LogDensityFn', 'MLIS', 'MLMCMC', 'NCE', 'NCEPlus', 'SM',
    'gradient_ascent', 'langevin_chain', 'noise_logprob', 'relative_iou',
    'sample_noise', 'stopping_ascent'
]
