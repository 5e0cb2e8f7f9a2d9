"""Training methods: ``method(logdensity_fn, targets) -> losses (N,)``."""

from .nce import NCE, NCEPlus

__all__ = ['NCE', 'NCEPlus']
