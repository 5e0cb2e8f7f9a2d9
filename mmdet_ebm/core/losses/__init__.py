"""Training methods: ``method(logdensity_fn, targets) -> losses (N,)``."""

from .importance import KLDIS, MLIS
from .iou_net import IoUNet, relative_iou
from .mcmc import MLMCMC
from .nce import NCE, NCEPlus
from .sampling import SamplingMethod
from .score_matching import DSM, SM

__all__ = [
    'DSM',
    'IoUNet',
    'KLDIS',
    'MLIS',
    'MLMCMC',
    'NCE',
    'NCEPlus',
    'SM',
    'SamplingMethod',
    'relative_iou',
]
