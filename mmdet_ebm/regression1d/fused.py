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
*   The derivatives in y and in the weights are nodes of their own in the
    graph, so a Langevin step does not compute weight gradients, nor a loss
    those in y. The derivative in y comes with f, and its derivatives in the
    weights are a kernel too: denoising score matching needs them.

Elsewhere, and for derivatives beyond these (score matching), ordinary
operations compute the same formula.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

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


def joint_logdensity(
    y: Tensor, context: Tensor, layers: Sequence[Tensor]
) -> Tensor:
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
    if (
        y.device.type != 'cpu'
        or any(tensor.dtype != torch.float32 for tensor in (y, *logistic))
        or joint_library(context.shape[1]) is None
    ):
        return _logdensity(y, logistic)
    y = y.contiguous()
    with_slope = torch.is_grad_enabled() and y.requires_grad
    f, slope = _forward(y, logistic, with_slope)
    result = f
    if torch.is_grad_enabled() and any(p.requires_grad for p in logistic):
        result = _ThroughWeights.apply(f, (y,), *logistic)
    if with_slope:
        # Both values are f; so is this sum, to the last bit.
        result = result + (_ThroughY.apply(f, slope, y, logistic) - f)
    return result


def _to_logistic(
    context,
    y_weight,
    y_bias,
    weight1,
    weight2,
    bias2,
    weight3,
    bias3,
    out_weight,
    out_bias,
):

    def row_sum(weight):
        return weight.sum(2, keepdim=True)

    return _Logistic(
        y_weight=2 * y_weight,
        y_bias=2 * y_bias,
        weight1=4 * weight1,
        context=2 * (context - row_sum(weight1)),
        weight2=4 * weight2,
        bias2=2 * (bias2 - row_sum(weight2)),
        weight3=4 * weight3,
        bias3=2 * (bias3 - 2 * row_sum(weight3)),
        out_weight=2 * out_weight,
        out_bias=out_bias - 3 * row_sum(out_weight),
    )


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
    return [
        ctypes.c_int(size)
        for size in (num_models, batch_size, _num_samples(y, p))
    ]


def _forward(y, p, with_slope):
    """f (E, n) by the kernel, and its derivative in y, or None."""
    f = torch.empty_like(y, requires_grad=False)
    slope = torch.empty_like(f) if with_slope else None
    p = _Logistic(*(tensor.contiguous() for tensor in p))
    joint_library(p.context.shape[1]).joint_forward(
        pointer(y), pointers(p), *_sizes(y, p), pointer(f), pointer(slope)
    )
    return f, slope


def _weight_gradients(kernel, y, grad, p):
    """What a kernel of this name makes of y, grad (E, n) and the weights."""
    grad = grad.contiguous()
    p = _Logistic(*(tensor.contiguous() for tensor in p))
    gradients = [torch.empty_like(tensor) for tensor in p]
    getattr(joint_library(p.context.shape[1]), kernel)(
        pointer(y),
        pointer(grad),
        pointers(p),
        *_sizes(y, p),
        pointers(gradients),
    )
    return gradients


def _slope(y, p):
    """The derivative of f in y (E, n) by ordinary operations."""
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(
            _logdensity(y, p).sum(), y, create_graph=True
        )
    return slope


def _differentiable_gradients(output, inputs, grad):
    """Gradients by ordinary operations; None where none is wanted."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(
        torch.autograd.grad(
            output,
            wanted,
            grad,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


# The engine runs a node if one of its tensor arguments leads to a wanted
# input. So each node below gets what it is a function of as arguments, and the
# rest in a tuple, which the engine does not look into.


class _ThroughY(torch.autograd.Function):
    """f (E, n) and its slope, which are known, as functions of y only."""

    @staticmethod
    def forward(ctx, f, slope, y, logistic):
        ctx.save_for_backward(slope, y)
        ctx.logistic = logistic
        return f.clone()

    @staticmethod
    def backward(ctx, grad_f):
        slope, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            known = slope
            slope = _SlopeThroughY.apply(known, y, ctx.logistic)
            if any(tensor.requires_grad for tensor in ctx.logistic):
                slope = slope + (
                    _SlopeThroughWeights.apply(known, (y,), *ctx.logistic)
                    - known
                )
        return None, None, grad_f * slope, None


class _ThroughWeights(torch.autograd.Function):
    """f (E, n), which is known, as a function of the weights only."""

    @staticmethod
    def forward(ctx, f, y, *logistic):
        ctx.save_for_backward(*logistic)
        (ctx.y,) = y
        return f.clone()

    @staticmethod
    def backward(ctx, grad_f):
        p = _Logistic(*ctx.saved_tensors)
        if torch.is_grad_enabled():
            gradients = _differentiable_gradients(
                _logdensity(ctx.y, p), p, grad_f
            )
        else:
            gradients = _weight_gradients('joint_backward', ctx.y, grad_f, p)
        return None, None, *gradients


class _SlopeThroughY(torch.autograd.Function):
    """The slope (E, n), which is known, as a function of y only."""

    @staticmethod
    def forward(ctx, slope, y, logistic):
        ctx.save_for_backward(y)
        ctx.logistic = logistic
        return slope.clone()

    @staticmethod
    def backward(ctx, grad_slope):
        (y,) = ctx.saved_tensors
        (gradient,) = _differentiable_gradients(
            _slope(y, ctx.logistic), [y], grad_slope
        )
        return None, gradient, None


class _SlopeThroughWeights(torch.autograd.Function):
    """The slope (E, n), which is known, as a function of the weights only."""

    @staticmethod
    def forward(ctx, slope, y, *logistic):
        ctx.save_for_backward(*logistic)
        (ctx.y,) = y
        return slope.clone()

    @staticmethod
    def backward(ctx, grad_slope):
        p = _Logistic(*ctx.saved_tensors)
        if torch.is_grad_enabled():
            gradients = _differentiable_gradients(
                _slope(ctx.y, p), p, grad_slope
            )
        else:
            gradients = _weight_gradients(
                'joint_slope_backward', ctx.y, grad_slope, p
            )
        return None, None, *gradients
