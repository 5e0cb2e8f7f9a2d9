r"""The joint layers of the ensemble, in one pass over memory.

Nearly all of a training step is spent here: ten features of some thousand
candidates for each model, four tanh layers forwards and back. What makes it
cheap:

*   :math:`\tanh z = 2\, \sigma(2 z) - 1`, and the logistic function costs a
    sixth of tanh on a CPU. Factors and shifts move into the small weights, so
    the features that pass between layers are :math:`s = \sigma(\cdot)`:

    .. math::
        s_0 &= \sigma(2 W_y y + 2 b_y) \\
        s_1 &= \sigma(4 W_a s_0 + 2 (c - W_a 1)) \\
        s_2 &= \sigma(4 W_b s_1 + 2 (b_b - W_b 1)) \\
        s_3 &= \sigma(4 W_c (s_1 + s_2) + 2 (b_c - 2 W_c 1)) \\
        f &= 2 w^T (s_1 + s_2 + s_3) + b - 3 w^T 1

    with c what the first joint layer gets from x.
*   Features first, candidates last, (E, H, n): weights multiply from the left
    and every elementwise pass runs over contiguous memory.
*   In float32 on a CPU, a kernel takes some candidates at a time through all
    layers and back (``joint_layers.cpp``).
*   The derivatives in y and in the weights are two nodes of the graph, so a
    Langevin step does not compute weight gradients, nor a loss those in y.

Elsewhere, and for a derivative that is itself to be differentiated (score
matching), ordinary operations compute the same formula.
"""

import ctypes
from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from .native import joint_library, pointer, pointers


class _Logistic(NamedTuple):
    """Weights and biases in front of the logistic functions, or gradients."""
    y_weight: Tensor  # (E, H, 1)
    y_bias: Tensor  # (E, H, 1)
    weight1: Tensor  # (E, H, H)
    context: Tensor  # (E, H, B)
    weight2: Tensor  # (E, H, H)
    bias2: Tensor  # (E, H, 1)
    weight3: Tensor  # (E, H, H)
    bias3: Tensor  # (E, H, 1)
    out_weight: Tensor  # (E, 1, H)
    out_bias: Tensor  # (E, 1, 1)


def joint_logdensity(y: Tensor, context: Tensor,
                     layers: Sequence[Tensor]) -> Tensor:
    """f of candidates, given what the first joint layer gets from x.

    Args:
        y: (E, n), B instances of S = n / B candidates each, for each model.
        context: (E, H, B), the first joint layer's input from x, with bias.
        layers: y's weight (E, H, 1) and bias (E, H, 1), the first joint
            layer's weight for y (E, H, H), weights (E, H, H) and biases
            (E, H, 1) of the second and third, weight (E, 1, H) and bias
            (E, 1, 1) of the output.

    Returns:
        f (E, n), differentiable any number of times.
    """
    logistic = _to_logistic(context, *layers)
    if (y.device.type != 'cpu'
            or any(tensor.dtype != torch.float32 for tensor in (y, *logistic))
            or joint_library(context.shape[1]) is None):
        return _logdensity(y, logistic)
    y = y.contiguous()
    f = _forward(y, logistic)
    if not torch.is_grad_enabled():
        return f
    result = f
    if any(tensor.requires_grad for tensor in logistic):
        result = _ThroughWeights.apply(f, y, *logistic)
    if y.requires_grad:
        # Both values are f; so is this sum, to the last bit.
        result = result + (_ThroughY.apply(f, y, *logistic) - f)
    return result


def _to_logistic(context, y_weight, y_bias, weight1, weight2, bias2, weight3,
                 bias3, out_weight, out_bias):

    def row_sum(weight):
        return weight.sum(2, keepdim=True)

    return _Logistic(
        y_weight=2 * y_weight, y_bias=2 * y_bias,
        weight1=4 * weight1, context=2 * (context - row_sum(weight1)),
        weight2=4 * weight2, bias2=2 * (bias2 - row_sum(weight2)),
        weight3=4 * weight3, bias3=2 * (bias3 - 2 * row_sum(weight3)),
        out_weight=2 * out_weight, out_bias=out_bias - 3 * row_sum(out_weight))


def _logdensity(y, p):
    """f (E, n) by ordinary operations."""
    by_instance = (*p.context.shape, _num_samples(y, p))  # (E, H, B, S)
    s0 = (p.y_weight * y[:, None] + p.y_bias).sigmoid()
    z1 = torch.bmm(p.weight1, s0).view(by_instance)
    s1 = (z1 + p.context[..., None]).sigmoid().view_as(s0)
    s12 = s1 + torch.baddbmm(p.bias2, p.weight2, s1).sigmoid()
    s123 = s12 + torch.baddbmm(p.bias3, p.weight3, s12).sigmoid()
    return torch.baddbmm(p.out_bias, p.out_weight, s123)[:, 0]


def _num_samples(y, p):
    """Candidates of each instance; 0 without instances."""
    return y.shape[1] // max(1, p.context.shape[2])


def _sizes(y, p):
    """Models, instances of each, candidates of each, as the kernels want."""
    num_models, _, batch_size = p.context.shape
    return [ctypes.c_int(size)
            for size in (num_models, batch_size, _num_samples(y, p))]


def _forward(y, p):
    """f (E, n) by the kernel."""
    f = torch.empty_like(y, requires_grad=False)
    p = _Logistic(*(tensor.contiguous() for tensor in p))
    joint_library(p.context.shape[1]).joint_forward(
        pointer(y), pointers(p), *_sizes(y, p), pointer(f))
    return f


def _backward(grad_f, y, p, gradients=None, grad_y=None):
    """Fill gradients in the weights, or in y, by the kernel."""
    grad_f = grad_f.contiguous()
    p = _Logistic(*(tensor.contiguous() for tensor in p))
    joint_library(p.context.shape[1]).joint_backward(
        pointer(y), pointer(grad_f), pointers(p), *_sizes(y, p),
        pointers(gradients) if gradients else None, pointer(grad_y))


class _ThroughY(torch.autograd.Function):
    """f (E, n), which is known already, as a function of y only."""

    @staticmethod
    def forward(ctx, f, y, *logistic):
        ctx.save_for_backward(y, *logistic)
        return f.clone()

    @staticmethod
    def backward(ctx, grad_f):
        y, *logistic = ctx.saved_tensors
        p = _Logistic(*logistic)
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            grad_y, = torch.autograd.grad(
                _logdensity(y, p), y, grad_f, create_graph=True)
        else:
            grad_y = torch.empty_like(y)
            _backward(grad_f, y, p, grad_y=grad_y)
        return None, grad_y, *[None] * len(p)


class _ThroughWeights(torch.autograd.Function):
    """f (E, n), which is known already, as a function of the weights only."""

    @staticmethod
    def forward(ctx, f, y, *logistic):
        ctx.save_for_backward(y, *logistic)
        return f.clone()

    @staticmethod
    def backward(ctx, grad_f):
        y, *logistic = ctx.saved_tensors
        p = _Logistic(*logistic)
        if torch.is_grad_enabled():
            wanted = [tensor for tensor in p if tensor.requires_grad]
            found = iter(torch.autograd.grad(
                _logdensity(y, p), wanted, grad_f, create_graph=True))
            gradients = [next(found) if tensor.requires_grad else None
                         for tensor in p]
        else:
            gradients = [torch.empty_like(
                tensor, memory_format=torch.contiguous_format) for tensor in p]
            _backward(grad_f, y, p, gradients)
        return None, None, *gradients
