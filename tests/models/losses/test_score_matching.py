"""SM and DSM through pooling and head: the parameter gradients are right."""

import pytest
import torch

from mmdet_ebm.core import DSM, SM

from ...small_models import (
    SIZES,
    boxes,
    energy_model,
    feature_maps,
    head_cfg,
)


def model_with(activation):
    return energy_model(head=head_cfg(act_cfg=dict(type=activation))).double()


def logdensity_fn(model):
    maps = [m.double() for m in feature_maps()]
    pyramid = model.pyramid(maps, SIZES)
    return model.logdensity_fn(pyramid, boxes(torch.float64))


@pytest.mark.parametrize('method', [SM(), DSM(0.075, 4)], ids=['SM', 'DSM'])
def test_parameter_gradient_equals_finite_differences(method):
    """Along three random directions through all of the head's parameters."""
    model = model_with('SiLU')
    function = logdensity_fn(model)
    parameters = list(model.parameters())

    def loss():
        generator = torch.Generator().manual_seed(3)
        targets = torch.full((5, 4), 0.013, dtype=torch.float64)
        losses, _ = method(function, targets, generator)
        return losses.sum()

    # f's own bias reaches no derivative in y.
    gradients = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    for _ in range(3):
        direction = [torch.randn_like(p) for p in parameters]
        expected = sum((g * d).sum() for g, d in zip(gradients, direction))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, direction):
                    p += sign * 1e-6 * d
            values.append(loss().item())
            with torch.no_grad():
                for p, d in zip(parameters, direction):
                    p -= sign * 1e-6 * d
        assert abs(expected) > 1e-3
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(
            expected.item(), rel=1e-5
        )


@pytest.mark.parametrize('activation', ['SiLU', 'ReLU'])
def test_trace_of_the_hessian_against_integration_by_parts(activation):
    """E[tr H(y)] = E[grad f(y) . y / sigma^2] for y ~ N(0, sigma^2 I).

    Holds for the smooth head within 4 standard errors of the difference. A
    ReLU's curvature lies in kinks that automatic differentiation passes over:
    there the two sides differ by far more.
    """
    sigma = 0.05
    function = logdensity_fn(model_with(activation))
    y = sigma * torch.randn(5, 400, 4, dtype=torch.float64)
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(function(y).sum(), y, create_graph=True)
    trace = sum(
        torch.autograd.grad(gradient[..., d].sum(), y, retain_graph=True)[0][
            ..., d
        ]
        for d in range(4)
    )
    # The mean gradient times y has mean zero: less variance without it.
    centred = gradient - gradient.mean(1, keepdim=True)
    difference = (trace - (centred * y / sigma**2).sum(-1)).detach()
    error = difference.mean(1).abs() / (difference.std(1) / 400**0.5)
    if activation == 'SiLU':
        assert error.max() < 4
    else:
        assert error.max() > 6
