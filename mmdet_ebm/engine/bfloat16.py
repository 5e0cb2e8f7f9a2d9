"""Mixed precision in bfloat16, on a CPU too."""

from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass under autocast to bfloat16.

    bfloat16 has the range of float32, so the loss needs no scaling. mmengine's
    ``AmpOptimWrapper`` refuses a CPU, because there is no loss scaler for it.
    Arguments are those of ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        """See ``OptimWrapper.optim_context``."""
        with (
            super().optim_context(model),
            torch.autocast(get_device(), dtype=torch.bfloat16),
        ):
            yield
