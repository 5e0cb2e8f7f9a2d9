r"""The joint layers of the ensemble, in few passes over memory.

Nearly all of a training step is spent here: ten features of some thousand
candidates for each model, four tanh layers forwards and back. Three things
make it cheap.

*   :math:`\tanh z = 2\, \sigma(2 z) - 1`, and the logistic function costs a
    sixth of tanh on a CPU. Factors and shifts move into the small weights, so
    the features that pass between layers are :math:`s = \sigma(\cdot)`:

    .. math::
        s_0 &= \sigma(2 W_y y + 2 b_y) \\
        s_1 &= \sigma(4 W_a s_0 + 2 (c - W_a 1)) \\
        s_2 &= \sigma(4 W_b s_1 + 2 (b_b - W_b 1)) \\
        s_3 &= \sigma(4 W_c (s_1 + s_2) + 2 (b_c - 2 W_c 1)) \\
        f &= 2 w (s_1 + s_2 + s_3) + b - 3 w 1

    with c what the first joint layer gets from x.
*   Features first, candidates last, (E, width, n): weights multiply from the
    left and every elementwise pass runs over contiguous memory, in place.
*   The derivatives in y and in the weights are two nodes of the graph, so a
    Langevin step does not compute weight gradients, nor a loss those in y.

A derivative that is itself to be differentiated (score matching) is computed
by automatic differentiation of the same formula instead.
"""

from typing import NamedTuple, Sequence

import torch
from torch import Tensor


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
    inputs = (y, context, *layers)
    with torch.no_grad():
        logistic = _to_logistic(context, *layers)
        f, features = _forward(y, logistic)
    if not torch.is_grad_enabled():
        return f
    result = f
    if any(tensor.requires_grad for tensor in inputs[1:]):
        result = _ThroughWeights.apply(f, features, logistic, *inputs)
    if y.requires_grad:
        through_y = _ThroughY.apply(f, features, logistic, *inputs)
        result = through_y if result is f else result + through_y - f
    return result


class _Logistic(NamedTuple):
    """Weights and biases in front of the logistic functions."""
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


def _reference(y, context, layers):
    """f by ordinary operations."""
    p = _to_logistic(context, *layers)
    num_models, width, batch_size = p.context.shape
    s0 = (p.y_weight * y[:, None] + p.y_bias).sigmoid()
    z1 = torch.bmm(p.weight1, s0).view(num_models, width, batch_size, -1)
    s1 = (z1 + p.context[..., None]).sigmoid().view_as(s0)
    sum12 = s1 + torch.baddbmm(p.bias2, p.weight2, s1).sigmoid()
    sum123 = sum12 + torch.baddbmm(p.bias3, p.weight3, sum12).sigmoid()
    return torch.baddbmm(p.out_bias, p.out_weight, sum123)[:, 0]


def _forward(y, p):
    """f (E, n) by in-place operations, and the features (E, H, n)."""
    num_models, width, batch_size = p.context.shape
    s0 = torch.mul(p.y_weight, y[:, None]).add_(p.y_bias).sigmoid_()
    s1 = torch.bmm(p.weight1, s0)
    s1.view(num_models, width, batch_size, -1).add_(p.context[..., None])
    s1.sigmoid_()
    s2 = torch.baddbmm(p.bias2, p.weight2, s1).sigmoid_()
    sum12 = s1 + s2
    s3 = torch.baddbmm(p.bias3, p.weight3, sum12).sigmoid_()
    f = torch.baddbmm(p.out_bias, p.out_weight, sum12)
    f.baddbmm_(p.out_weight, s3)
    return f[:, 0], (s0, s1, s2, sum12, s3)


def _backward(grad_f, features, p):
    """Gradients (E, H, n) at the inputs of the four logistic functions.

    A generator, from the last to the first: each is overwritten by the next.
    """
    s0, s1, s2, _, s3 = features
    grad = torch.mul(p.out_weight.transpose(1, 2), grad_f[:, None])
    grad_z = torch.empty_like(grad)
    for s, weight in ((s3, p.weight3), (s2, p.weight2)):
        yield _logistic_backward(grad, s, grad_z)
        # The residual connection passes grad on beside the layer.
        grad.baddbmm_(weight.transpose(1, 2), grad_z)
    yield _logistic_backward(grad, s1, grad_z)
    torch.bmm(p.weight1.transpose(1, 2), grad_z, out=grad)
    yield _logistic_backward(grad, s0, grad_z)


def _logistic_backward(grad, s, out):
    return torch.ops.aten.sigmoid_backward.grad_input(grad, s, grad_input=out)


class _ThroughY(torch.autograd.Function):
    """f (E, n), differentiable in y only."""

    @staticmethod
    def forward(ctx, f, features, logistic, y, context, *layers):
        ctx.save_for_backward(y, context, *layers)
        ctx.cache = features, logistic
        return f.clone()

    @staticmethod
    def backward(ctx, grad_f):
        nothing = [None] * (len(ctx.needs_input_grad) - 4)
        if torch.is_grad_enabled():
            y, context, *layers = ctx.saved_tensors
            grad_y, = torch.autograd.grad(
                _reference(y, context, layers), y, grad_f, create_graph=True)
            return None, None, None, grad_y, *nothing
        features, p = ctx.cache
        *_, grad_z0 = _backward(grad_f, features, p)
        grad_y = torch.bmm(p.y_weight.transpose(1, 2), grad_z0)[:, 0]
        return None, None, None, grad_y, *nothing


class _ThroughWeights(torch.autograd.Function):
    """f (E, n), differentiable in the context and the layers only."""

    @staticmethod
    def forward(ctx, f, features, logistic, y, context, *layers):
        ctx.save_for_backward(y, context, *layers)
        ctx.cache = features, logistic
        return f.clone()

    @staticmethod
    def backward(ctx, grad_f):
        y, context, *layers = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = torch.autograd.grad(
                _reference(y, context, layers), (context, *layers), grad_f,
                create_graph=True)
            return None, None, None, None, *grads
        features, p = ctx.cache
        s0, s1, _, sum12, s3 = features
        # Gradients of what _to_logistic returns ...
        grad_row = grad_f[:, None]
        out = torch.bmm(grad_row, sum12.transpose(1, 2))
        out.baddbmm_(grad_row, s3.transpose(1, 2))
        steps = _backward(grad_f, features, p)
        weight3, bias3 = _affine_grads(next(steps), sum12)
        weight2, bias2 = _affine_grads(next(steps), s1)
        grad_z1 = next(steps)
        weight1 = torch.bmm(grad_z1, s0.transpose(1, 2))
        grad_context = grad_z1.view(*context.shape, -1).sum(3)
        grad_z0 = next(steps)
        # The row from the left: the column from the right is ten times slower.
        y_weight = torch.bmm(y[:, None], grad_z0.transpose(1, 2))
        # ... and from these those of its arguments.
        bias1 = grad_context.sum(2, keepdim=True)
        out_bias = grad_f.sum(1)[:, None, None]
        return (None, None, None, None, 2 * grad_context,
                2 * y_weight.transpose(1, 2),
                2 * grad_z0.sum(2, keepdim=True),
                4 * weight1 - 2 * bias1,
                4 * weight2 - 2 * bias2, 2 * bias2,
                4 * weight3 - 4 * bias3, 2 * bias3,
                2 * out - 3 * out_bias, out_bias)


def _affine_grads(grad_z, features):
    """Gradients of weight and bias, from that of their output."""
    return (torch.bmm(grad_z, features.transpose(1, 2)),
            grad_z.sum(2, keepdim=True))
