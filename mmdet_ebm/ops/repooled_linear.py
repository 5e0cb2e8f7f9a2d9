"""A linear layer on pooled features that are not kept for its gradient."""

from typing import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def repooled_linear(pools: Sequence[Callable[[], Tensor]], weight: Tensor,
                    bias: Tensor) -> Tensor:
    """``F.linear`` of features that are pooled again for its gradient.

    Pooled features are what a training step mostly holds, and cost little
    beside the products with the weight: here only one part of them exists at
    a time. They must not need gradients themselves. Under autocast the
    products are of its precision, as in ``F.linear``.

    Args:
        pools: Each gives the features (R_i, F) of a part of the boxes.
        weight: (out, F).
        bias: (out,).

    Returns:
        (sum R_i, out), with once differentiable gradients in weight and bias.
    """
    device = weight.device.type
    dtype = weight.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _RepooledLinear.apply(weight.to(dtype), bias.to(dtype), pools)


class _RepooledLinear(Function):

    @staticmethod
    def forward(ctx, weight, bias, pools):
        ctx.pools = pools
        ctx.dtype = weight.dtype
        parts = [torch.addmm(bias, pool().to(ctx.dtype), weight.t())
                 for pool in pools]
        ctx.sizes = [len(part) for part in parts]
        ctx.weight_shape = weight.shape
        return torch.cat(parts) if parts else bias.new_zeros(0, len(bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_weight = grad.new_zeros(ctx.weight_shape)
        for pool, part in zip(ctx.pools, grad.split(ctx.sizes)):
            grad_weight.addmm_(part.t(), pool().to(ctx.dtype))
        return grad_weight, grad.sum(0), None
