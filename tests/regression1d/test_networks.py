"""The ensemble network: its values and every derivative, against the plain."""

import pytest
import torch

from mmdet_ebm.core import DSM, MLMCMC, SM, NCEPlus
from mmdet_ebm.regression1d import fused, native
from mmdet_ebm.regression1d.fused import joint_logdensity
from mmdet_ebm.regression1d.networks import EnsembleNetwork, PlainNetwork

METHODS = {
    'nce_plus': NCEPlus((0.1, 0.8), 32, 0.025),
    'ml_mcmc': MLMCMC(0.05, 3, 32),
    'dsm': DSM(0.2, 32),
    'sm': SM(),
}


@pytest.fixture
def models():
    """Three plain networks in float64, and the ensemble of the same."""
    plain = [PlainNetwork() for _ in range(3)]
    ensemble = EnsembleNetwork.from_models(plain).double()
    return [model.double() for model in plain], ensemble


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_ensemble_evaluates_each_network_at_its_own_points(models):
    plain, ensemble = models
    x = torch.randn(3, 4).double()
    y = torch.randn(12, 5, 1).double()
    f = ensemble.logdensity_fn(x)(y).view(3, 4, 5)
    for model, x_own, y_own, f_own in zip(plain, x, y.view(3, 4, 5, 1), f):
        torch.testing.assert_close(model.logdensity_fn(x_own)(y_own), f_own)


@pytest.mark.parametrize('name', METHODS)
def test_losses_and_gradients_equal_those_of_lone_models(models, name):
    """Given the same generators, so the same samples."""
    plain, ensemble = models
    x, targets = torch.randn(2, 3, 4).double()
    losses = METHODS[name](
        ensemble.logdensity_fn(x),
        targets.view(-1, 1),
        [generator(seed) for seed in range(3)],
    ).view(3, 4)
    losses.sum().backward()
    for i, model in enumerate(plain):
        own = METHODS[name](
            model.logdensity_fn(x[i]), targets[i, :, None], generator(i)
        )
        torch.testing.assert_close(losses[i], own)
        own.sum().backward()
        for parameter_name, parameter in ensemble.named_parameters():
            layer, kind = parameter_name.rsplit('_', 1)
            expected = getattr(getattr(model, layer), kind).grad
            if expected is None:  # f' does not depend on the output's bias
                assert parameter.grad is None
                continue
            torch.testing.assert_close(
                parameter.grad[i].view_as(expected), expected
            )


def inputs(num_models=2, width=3, batch_size=2, num_samples=3):
    def randn(*shape):
        return torch.randn(
            num_models, *shape, dtype=torch.float64, requires_grad=True
        )

    square, column = (width, width), (width, 1)
    return (
        randn(batch_size * num_samples),
        randn(width, batch_size),
        randn(*column),
        randn(*column),
        randn(*square),
        randn(*square),
        randn(*column),
        randn(*square),
        randn(*column),
        randn(1, width),
        randn(1, 1),
    )


def joint(y, context, *layers):
    return joint_logdensity(y, context, layers)


def test_first_and_second_derivatives_agree_with_differences():
    assert torch.autograd.gradcheck(joint, inputs())
    assert torch.autograd.gradgradcheck(joint, inputs())


def test_only_the_gradients_that_are_wanted_are_computed(monkeypatch):
    """A Langevin step runs no kernel for the weights; a loss one of them;
    denoising score matching one of another kind."""
    if native.joint_library(10) is None:
        pytest.skip('no C++ compiler')
    calls = []
    weight_gradients = fused._weight_gradients

    def recorded(kernel, *arguments):
        calls.append(kernel)
        return weight_gradients(kernel, *arguments)

    def refused(*arguments):
        raise AssertionError('second derivative in y')

    monkeypatch.setattr(fused, '_weight_gradients', recorded)
    monkeypatch.setattr(fused, '_slope', refused)
    ensemble = EnsembleNetwork(2)
    x, y = torch.randn(2, 3), torch.randn(6, 4, 1)
    parameters = [
        p for name, p in ensemble.named_parameters() if name != 'out_bias'
    ]

    def gradient(loss, inputs):
        calls.clear()
        torch.autograd.grad(loss, inputs)
        return list(calls)

    y_leaf = y.clone().requires_grad_()
    assert gradient(ensemble.logdensity_fn(x)(y_leaf).sum(), y_leaf) == []
    assert gradient(ensemble.logdensity_fn(x)(y).sum(), parameters) == [
        'joint_backward'
    ]
    losses = DSM(0.2, 4)(ensemble.logdensity_fn(x), y[:, 0])
    assert (
        gradient(losses.sum(), parameters).count('joint_slope_backward') == 1
    )


def test_float32_is_as_exact_as_the_plain_network():
    plain = [PlainNetwork()]
    x, y = torch.randn(1, 50), torch.randn(50, 20, 1)
    fused = EnsembleNetwork.from_models(plain).logdensity_fn(x)(y)
    f = plain[0].logdensity_fn(x[0])(y)
    exact = plain[0].double().logdensity_fn(x[0].double())(y.double())
    assert (fused - exact).abs().max() < 3 * (f - exact).abs().max() + 1e-6


@pytest.fixture(params=['kernel', 'operations'])
def implementation(request, monkeypatch):
    """The compiled kernel, and what runs without a compiler."""
    if request.param == 'operations':
        monkeypatch.setattr(fused, 'joint_library', lambda width: None)
    elif native.joint_library(10) is None:
        pytest.skip('no C++ compiler')


@pytest.mark.parametrize(
    'batch_size, num_samples',
    [(3, 1), (2, 16), (3, 64), (2, 85), (1, 1025), (0, 7), (4, 0)],
)
def test_values_and_gradients_are_exact_to_rounding(
    implementation, batch_size, num_samples
):
    """Against float64; sizes around the kernel's blocks of 16 and 64."""
    y, context, *layers = (
        tensor.detach().float().requires_grad_()
        for tensor in inputs(2, 10, batch_size, num_samples)
    )
    arguments = (y, context, *layers)
    precise = [
        tensor.detach().double().requires_grad_() for tensor in arguments
    ]
    f, expected = joint(*arguments), joint(*precise)
    torch.testing.assert_close(f.double(), expected, rtol=1e-5, atol=1e-4)
    weight = torch.randn_like(f)
    found = torch.autograd.grad(f, arguments, weight)
    wanted = torch.autograd.grad(expected, precise, weight.double())
    for own, other in zip(found, wanted):
        scale = max([1.0, *other.abs().flatten().tolist()])
        torch.testing.assert_close(
            own.double(), other, rtol=0, atol=3e-5 * scale
        )


@pytest.mark.parametrize('batch_size, num_samples', [(3, 1), (2, 85), (0, 7)])
def test_derivatives_of_the_slope_are_exact_to_rounding(
    implementation, batch_size, num_samples
):
    """d/dweights and d/dy of sum(u f'(y)), against float64."""
    arguments = [
        tensor.detach().float().requires_grad_()
        for tensor in inputs(2, 10, batch_size, num_samples)
    ]
    precise = [
        tensor.detach().double().requires_grad_() for tensor in arguments
    ]
    weight = torch.randn_like(arguments[0])
    found, wanted = (
        torch.autograd.grad(
            torch.autograd.grad(joint(*own).sum(), own[0], create_graph=True)[
                0
            ],
            own,
            weight.to(own[0].dtype),
            materialize_grads=True,
        )
        for own in (arguments, precise)
    )
    for own, other in zip(found, wanted):
        scale = max([1.0, *other.abs().flatten().tolist()])
        torch.testing.assert_close(
            own.double(), other, rtol=0, atol=1e-4 * scale
        )


def test_extreme_candidates_give_finite_values(implementation):
    ensemble = EnsembleNetwork(1)
    y = torch.tensor([-1e30, -1e4, 0.0, 1e4, 1e30]).view(1, 5, 1)
    f = ensemble.logdensity_fn(torch.zeros(1, 1))(y)
    assert f.isfinite().all()


def test_nan_is_not_hidden(implementation):
    y = torch.tensor([0.0, float('nan'), 1.0]).view(1, 3, 1)
    f = EnsembleNetwork(1).logdensity_fn(torch.zeros(1, 1))(y)
    assert f.isnan().tolist() == [[False, True, False]]


def test_missing_compiler_is_logged_and_does_without(monkeypatch, caplog):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    native.joint_library.cache_clear()
    try:
        assert native.joint_library(10) is None
        assert 'no-such-compiler' in caplog.text
        assert EnsembleNetwork(1).logdensity_fn(torch.zeros(1, 1))(
            torch.zeros(1, 2, 1)
        ).shape == (1, 2)
    finally:
        native.joint_library.cache_clear()


@pytest.mark.parametrize('width', [1, 64, 65])
def test_other_widths_are_exact_too(width):
    """The kernel takes up to 64, ordinary operations the rest."""
    plain = [PlainNetwork(width)]
    x, y = torch.randn(1, 3), torch.randn(3, 40, 1)
    ensemble = EnsembleNetwork.from_models(plain)
    f = ensemble.logdensity_fn(x)(y)
    expected = plain[0].logdensity_fn(x[0])(y)
    torch.testing.assert_close(f, expected, rtol=1e-4, atol=1e-5)
    f.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(
        ensemble.joint2_weight.grad[0],
        plain[0].joint2.weight.grad,
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    'sizes', [dict(num_models=0), dict(num_models=1, width=0)]
)
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match='at least one model'):
        EnsembleNetwork(**sizes)
