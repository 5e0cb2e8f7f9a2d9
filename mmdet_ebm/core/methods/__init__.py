"""Training methods: how f is fitted to the targets.

Each is a module that is called as

    losses, info = method(logdensity_fn, targets, generator)

Args:
    logdensity_fn: Candidates y (N, S, D) -> f (N, S), for the S of the method
        and, where the method does not evaluate the truth, for S = 1.
        Instances must not influence each other.
    targets: (N, D), the truth of each instance.
    generator: Source of randomness, see :func:`mmdet_ebm.core.draw`.

Returns:
    Losses (N,), whose gradients reach what ``logdensity_fn`` uses, and the
    :class:`LossInfo` of the values of f.

Attributes:
    num_candidates: Candidates of an instance that the loss evaluates at once.
    needs_curvature: Whether the loss needs second derivatives of f in y.
    noise: The mixture that samples come from, where there is one.
"""

from .importance import KLDIS, MLIS
from .iou_net import IoUNet, relative_iou
from .mcmc import MLMCMC
from .nce import NCE, NCEPlus
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
    'relative_iou',
]
