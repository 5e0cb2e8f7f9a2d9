"""The method in plain PyTorch: noise, losses, ascent. Imports no mmdet."""

from .ascent import AscentResult, gradient_ascent
from .losses import NCE, NCEPlus
from .noise import GaussianMixtureNoise, noise_logprob, sample_noise
from .types import LogDensityFn

__all__ = [
    'AscentResult', 'GaussianMixtureNoise', 'LogDensityFn', 'NCE', 'NCEPlus',
    'gradient_ascent', 'noise_logprob', 'sample_noise'
]
