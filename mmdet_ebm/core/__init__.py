"""The method in plain PyTorch: noise, training methods, ascent. No mmdet.

A model gives f(y), the unnormalised log-density of y for what it sees; larger
is better. The energy of the papers is E = -f.
"""

from .ascent import (
    STEP_RULES,
    AscentInfo,
    AscentResult,
    BoxAscent,
    IoUNetAscent,
    decayed_steps,
    gradient_ascent,
    secant_steps,
    stopping_ascent,
)
from .box_density import (
    CAUTIOUS,
    BoxDensity,
    BoxPrior,
    FixedBoxDensity,
    log_odds,
    log_size,
    student_logprob,
)
from .chunked import chunked_loss, chunks_of
from .diagnostics import separation
from .langevin import langevin_chain
from .methods import (
    DSM,
    KLDIS,
    MLIS,
    MLMCMC,
    NCE,
    SM,
    IoUNet,
    NCEPlus,
    relative_iou,
)
from .noise import (
    GaussianMixtureNoise,
    Generators,
    draw,
    noise_logprob,
    quasi_random_noise,
    sample_noise,
)
from .object_odds import CLASS_SCORE_ALONE, object_features, object_probs
from .quality import quality, side_iou
from .side_density import (
    SideDensities,
    SideDerivatives,
    side_densities,
    side_derivatives,
)
from .types import LogDensityFn, LossInfo
from .uncertainty import (
    DensitySamples,
    Laplace,
    SampleWeights,
    fit_deviations,
    hessian,
    laplace,
    sample_density,
    weigh_samples,
)

__all__ = [
    'AscentInfo',
    'AscentResult',
    'BoxAscent',
    'BoxDensity',
    'BoxPrior',
    'CAUTIOUS',
    'CLASS_SCORE_ALONE',
    'DSM',
    'DensitySamples',
    'FixedBoxDensity',
    'GaussianMixtureNoise',
    'Generators',
    'IoUNet',
    'IoUNetAscent',
    'KLDIS',
    'Laplace',
    'LogDensityFn',
    'LossInfo',
    'MLIS',
    'MLMCMC',
    'NCE',
    'NCEPlus',
    'SM',
    'STEP_RULES',
    'SampleWeights',
    'SideDensities',
    'SideDerivatives',
    'chunked_loss',
    'chunks_of',
    'decayed_steps',
    'draw',
    'fit_deviations',
    'gradient_ascent',
    'hessian',
    'langevin_chain',
    'laplace',
    'log_odds',
    'log_size',
    'noise_logprob',
    'object_features',
    'object_probs',
    'quality',
    'quasi_random_noise',
    'relative_iou',
    'sample_density',
    'sample_noise',
    'secant_steps',
    'separation',
    'side_densities',
    'side_derivatives',
    'side_iou',
    'stopping_ascent',
    'student_logprob',
    'weigh_samples',
]
