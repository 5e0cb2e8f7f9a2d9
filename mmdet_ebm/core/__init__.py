"""The method in plain PyTorch: noise, losses, ascent. Imports no mmdet."""

from .ascent import (
    STEP_RULES,
    AscentResult,
    decayed_steps,
    gradient_ascent,
    secant_steps,
    stopping_ascent,
)
from .diagnostics import RecordedLogDensity, separation, training_figures
from .langevin import langevin_chain
from .losses import (
    DSM,
    KLDIS,
    MLIS,
    MLMCMC,
    NCE,
    SM,
    IoUNet,
    NCEPlus,
    SamplingMethod,
    relative_iou,
)
from .noise import (
    GaussianMixtureNoise,
    noise_logprob,
    quasi_random_noise,
    sample_noise,
)
from .types import LogDensityFn
from .uncertainty import (
    DensitySamples,
    Laplace,
    SampleWeights,
    hessian,
    laplace,
    sample_density,
    weigh_samples,
)

__all__ = [
    'AscentResult',
    'DSM',
    'DensitySamples',
    'GaussianMixtureNoise',
    'IoUNet',
    'KLDIS',
    'Laplace',
    'LogDensityFn',
    'MLIS',
    'MLMCMC',
    'NCE',
    'NCEPlus',
    'RecordedLogDensity',
    'SM',
    'STEP_RULES',
    'SampleWeights',
    'SamplingMethod',
    'decayed_steps',
    'gradient_ascent',
    'hessian',
    'langevin_chain',
    'laplace',
    'noise_logprob',
    'quasi_random_noise',
    'relative_iou',
    'sample_density',
    'sample_noise',
    'secant_steps',
    'separation',
    'stopping_ascent',
    'training_figures',
    'weigh_samples',
]
