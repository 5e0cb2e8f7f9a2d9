"""SM and DSM through pooling and head: the parameter gradients are right."""

import pytest
import torch

from mmdet_ebm.core import DSM, SM

from .test_refiner import SIZES, boxes, features, refiner


def energy_model(activation):
    model = refiner(
        head=dict(
            type='EnergyHead',
            num_classes=3,
            in_channels=4,
            fc_out_channels=16,
            act_cfg=dict(type=activation),
        )
    )
    return model.double()


def logdensity_fn(model, reference):
    maps = [f.double() for f in features()]
    return model.logdensity_fn(model.surface(maps, SIZES), reference)


def double_boxes():
    reference = boxes()
    return type(reference)(
        reference.corners.double(),
        reference.labels,
        reference.image_index,
        reference.counts,
    )


@pytest.mark.parametrize('method', [SM(), DSM(0.075, 4)], ids=['SM', 'DSM'])
def test_parameter_gradient_equals_finite_differences(method):
    """Along three random directions through all of the head's parameters."""
    model, reference = energy_model('SiLU'), double_boxes()
    function = logdensity_fn(model, reference)
    parameters = list(model.parameters())

    def loss():
        generator = torch.Generator().manual_seed(3)
        # Away from 0, where box edges could lie on cell borders.
        targets = torch.full((5, 4), 0.013, dtype=torch.float64)
        return method(function, targets, generator).sum()

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
    # Features as large as after training: the kinks matter.
    model, reference = energy_model(activation), double_boxes()
    function = logdensity_fn(model, reference)
    y = sigma * torch.randn(5, 1500, 4, dtype=torch.float64)
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
    error = difference.mean(1).abs() / (difference.std(1) / 1500**0.5)
    if activation == 'SiLU':
        assert error.max() < 4
    else:
        assert error.max() > 8
