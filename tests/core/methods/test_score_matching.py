"""SM and DSM against closed forms for a Gaussian log-density."""

import pytest
import torch

from mmdet_ebm.core import DSM, SM

from ..conftest import generator

PRECISION = torch.tensor(
    [[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]], dtype=torch.float64
)


def gaussian(y):
    """-y' A y / 2: gradient -A y, Hessian -A."""
    return -0.5 * (y @ PRECISION * y).sum(-1)


def test_sm_of_a_gaussian():
    targets = torch.randn(6, 3, dtype=torch.float64)
    expected = -PRECISION.trace() + 0.5 * (targets @ PRECISION).square().sum(1)
    torch.testing.assert_close(SM()(gaussian, targets)[0], expected)


def test_expectation_of_dsm_of_a_gaussian():
    """y_m = y + s e, so the residual is -A y + (I / s - s A) e.

    4 million samples; within 5 standard errors of the mean.
    """
    sigma = 0.4
    targets = torch.randn(4, 3, dtype=torch.float64)
    slope = torch.eye(3, dtype=torch.float64) / sigma - sigma * PRECISION
    expected = (targets @ PRECISION).square().sum(1) + slope.square().sum()
    method = DSM(sigma, 10_000)
    runs = torch.stack(
        [method(gaussian, targets, generator(seed))[0] for seed in range(100)]
    )
    error = runs.std(0) / 10
    assert ((runs.mean(0) - expected).abs() < 5 * error).all()


def test_dsm_vanishes_for_the_score_of_the_noise_itself():
    targets = torch.randn(5, 2)
    losses, _ = DSM(0.3, 16)(
        lambda y: -0.5 * ((y - targets[:, None]) / 0.3).square().sum(-1),
        targets,
    )
    assert losses.abs().max() < 1e-6


def test_parameter_gradients_include_the_hessians():
    """f = w * sin(y1) * y2: tr H = -w sin(y1) y2, by hand."""
    weight = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.6, -0.9]], dtype=torch.float64)
    loss, _ = SM()(lambda y: weight * y[..., 0].sin() * y[..., 1], target)
    y1, y2 = target[0]
    trace = -y1.sin() * y2
    norm = (y1.cos() * y2).square() + y1.sin().square()
    torch.testing.assert_close(loss[0], weight * trace + weight**2 / 2 * norm)
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    torch.testing.assert_close(gradient, trace + weight.detach() * norm)


@pytest.mark.parametrize('arguments', [(0.0, 4), (-1.0, 4), (0.1, 0)])
def test_invalid_settings_are_refused(arguments):
    with pytest.raises(ValueError, match='sigma|num_samples'):
        DSM(*arguments)


def test_dsm_takes_a_width_for_each_dimension():
    sigma = torch.tensor([0.1, 0.4])
    method = DSM(sigma.tolist(), 500)
    targets = torch.zeros(3, 2)
    offsets = []

    def exact(y):
        """The log-density of the noise itself: no residual is left."""
        offsets.append(y.detach())
        return -(y / sigma).square().sum(-1) / 2

    losses, _ = method(exact, targets)
    torch.testing.assert_close(losses, torch.zeros(3))
    torch.testing.assert_close(
        offsets[0].flatten(0, 1).std(0), sigma, rtol=0.1, atol=0.0
    )
    for wrong in ('measured', [0.1, 0.0]):
        with pytest.raises(ValueError, match='sigma must be positive, got'):
            DSM(wrong, 8)
