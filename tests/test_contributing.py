"""The example of CONTRIBUTING.md, executed as it stands there."""

import math
import re

import pytest
import torch
from mmdet.registry import MODELS

from mmdet_ebm.models import EnergyLoss

from .small_models import ROOT


def code(first_line):
    """The block of CONTRIBUTING.md that begins with a line."""
    blocks = re.findall(
        r'^```python\n(.*?)^```$',
        (ROOT / 'CONTRIBUTING.md').read_text(),
        re.M | re.S,
    )
    (found,) = (text for text in blocks if text.startswith(first_line))
    return compile(found, 'CONTRIBUTING.md', 'exec')


@pytest.fixture(scope='module')
def my_method():
    """Names of the example's file up to the method."""
    names = {}
    exec(code('# my_method.py\n'), names)
    return names


def generator():
    return torch.Generator().manual_seed(0)


def test_the_example_keeps_the_contract(my_method):
    method = my_method['BinaryNCE']((0.1, 0.8), 16)
    targets, weight = torch.randn(5, 4), torch.ones((), requires_grad=True)
    seen = []

    def logdensity_fn(y):
        seen.append(y.shape)
        return -weight * y.square().sum(-1)

    losses, info = method(logdensity_fn, targets, generator())
    assert seen == [(5, method.num_candidates, 4)]
    assert losses.shape == (5,) and losses.requires_grad
    assert info.truth.shape == (5,) and info.noise.shape == (5, 16)
    assert not info.truth.requires_grad and not info.noise.requires_grad
    torch.testing.assert_close(info.truth, -targets.square().sum(-1))


def test_the_example_learns_a_gaussian(my_method):
    """Its width and, as the text says, its normaliser."""
    method = my_method['BinaryNCE']((0.2, 0.6), 256)
    targets = 0.3 * torch.randn(2000, 1, generator=generator())
    log_precision = torch.zeros((), requires_grad=True)
    offset = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([log_precision, offset], lr=0.1)
    source = generator()
    for _ in range(100):
        losses, _ = method(
            lambda y: offset - 0.5 * log_precision.exp() * y.square().sum(-1),
            targets,
            source,
        )
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    deviation = math.exp(-0.5 * log_precision.item())
    wanted = targets.square().mean().sqrt().item()
    assert deviation == pytest.approx(wanted, rel=0.03)
    integral = math.exp(offset.item()) * deviation * math.sqrt(2 * math.pi)
    assert integral == pytest.approx(1, rel=0.03)


def test_the_examples_loss_can_be_named_in_a_config(my_method):
    exec(code('from mmdet.registry import MODELS\n'), my_method)
    loss = MODELS.build(dict(type='BinaryNCELoss', num_samples=8))
    assert isinstance(loss, EnergyLoss)
    assert isinstance(loss.method, my_method['BinaryNCE'])
    assert loss.method.num_candidates == 9
    config = {}
    exec(code('custom_imports = '), config)
    named = MODELS.build(config['model']['energy_model']['loss'])
    assert named.method.num_samples == 63
