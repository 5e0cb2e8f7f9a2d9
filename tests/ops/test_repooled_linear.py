"""Products with features that are pooled again for the gradient."""

import pytest
import torch
import torch.nn.functional as F

from mmdet_ebm.ops import repooled_linear


def parts(dtype=torch.float64):
    return [torch.randn(rows, 6, dtype=dtype) for rows in (3, 0, 4)]


def test_equals_an_ordinary_linear_layer():
    features = parts()
    weight = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(7, 5, dtype=torch.float64)
    found = repooled_linear([lambda f=f: f for f in features], weight, bias)
    expected = F.linear(torch.cat(features), weight, bias)
    torch.testing.assert_close(found, expected)
    for own, other in zip(torch.autograd.grad(found, (weight, bias), grad),
                          torch.autograd.grad(expected, (weight, bias), grad)):
        torch.testing.assert_close(own, other)


def test_keeps_no_features_between_the_passes():
    """Each part is pooled once for the values and once for the gradient."""
    calls = []

    def pool():
        calls.append(len(calls))
        return torch.ones(2, 6)

    weight = torch.ones(5, 6, requires_grad=True)
    out = repooled_linear([pool, pool], weight, torch.zeros(5))
    assert len(calls) == 2
    out.sum().backward()
    assert len(calls) == 4
    assert torch.equal(weight.grad, torch.full((5, 6), 4.0))


def test_no_parts_give_zero_gradients():
    weight = torch.ones(5, 6, requires_grad=True)
    out = repooled_linear([], weight, torch.zeros(5))
    out.sum().backward()
    assert out.shape == (0, 5) and (weight.grad == 0).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_autocast_lowers_the_products_as_for_a_linear_layer(dtype):
    features = parts(torch.float32)
    weight = torch.randn(5, 6, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16,
                        enabled=dtype == torch.bfloat16):
        found = repooled_linear([lambda f=f: f for f in features], weight,
                                bias)
        expected = F.linear(torch.cat(features), weight, bias)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    own, = torch.autograd.grad(found.float().sum(), weight)
    other, = torch.autograd.grad(expected.float().sum(), weight)
    assert own.dtype == other.dtype == torch.float32
    torch.testing.assert_close(own, other, rtol=5e-2, atol=5e-2)
