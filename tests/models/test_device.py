"""What runs per step never waits for the device and never mixes devices.

On the meta device nothing has a value: reading one back (``.item()``,
``nonzero``, a Python condition) raises, and so does mixing with the CPU. Two
modes on top forbid copies from or to the host, explicit ones and those hidden
in ``torch.tensor([...], device=...)``.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet_ebm.core import gradient_ascent
from mmdet_ebm.ops import Boxes

from ..small_models import METHODS, SIZES, energy_model, feature_maps


class NoCopies(TorchDispatchMode):
    """Raises where a tensor would cross between host and device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in ('_to_copy', 'copy_'):
            devices = {
                a.device.type for a in args if isinstance(a, torch.Tensor)
            }
            if kwargs.get('device') is not None:
                devices.add(torch.device(kwargs['device']).type)
            assert len(devices) == 1, f'a copy between {devices}'
        return func(*args, **kwargs)


class NoHostData(TorchFunctionMode):
    """Raises where Python numbers would be uploaded."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        uploads = (
            torch.tensor,
            torch.as_tensor,
            torch.from_numpy,
            torch.Tensor.new_tensor,
        )
        assert func not in uploads, f'{func.__name__} uploads host data'
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_traffic():
    with NoCopies(), NoHostData():
        yield


@pytest.fixture
def maps():
    return [m.to('meta') for m in feature_maps()]


@pytest.fixture
def truth():
    """Boxes and labels of each image."""
    corners = [torch.rand(n, 4, device='meta') for n in (3, 2)]
    labels = [torch.zeros(n, dtype=torch.long, device='meta') for n in (3, 2)]
    return corners, labels


@pytest.mark.parametrize(
    'chunked, unfrozen', [(None, False), (True, False), (True, True)]
)
@pytest.mark.parametrize('method', METHODS)
def test_training_step(method, chunked, unfrozen, maps, truth):
    samples = {} if method == 'SMLoss' else dict(num_samples=8)
    model = energy_model(loss=dict(type=method, **samples), chunked=chunked)
    model.to('meta').train()
    maps = [m.requires_grad_(unfrozen) for m in maps]
    with no_host_traffic():
        logged = model.loss(maps, *truth, SIZES)
        logged['loss_energy'].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all((m.grad is not None) == unfrozen for m in maps)


@pytest.mark.parametrize('kind', ['BoxAscent', 'IoUNetAscent'])
def test_refinement(kind, maps, truth):
    model = energy_model(ascent=dict(type=kind)).to('meta')
    with no_host_traffic():
        pyramid = model.pyramid(maps, SIZES)
        boxes = Boxes.from_images(*truth)
        refined = model.refine(pyramid, boxes)
        values = model.logdensity(pyramid, boxes)
    assert refined.corners.shape == (5, 4) and values.shape == (5,)


@pytest.mark.parametrize(
    'uncertainty', [None, dict(method='sampling'), dict(method='laplace')]
)
def test_uncertainty(uncertainty, maps, truth):
    """Laplace's eigenvalues do wait on a GPU, which this check cannot see."""
    model = energy_model(uncertainty=uncertainty).to('meta')
    with no_host_traffic():
        pyramid = model.pyramid(maps, SIZES)
        found = model.uncertainty(pyramid, Boxes.from_images(*truth))
    assert found.std.shape == (5, 4)


def test_expected_quality(maps, truth):
    model = energy_model(density=dict(side_std=0.1)).to('meta')
    boxes = Boxes.from_images(*truth)
    prior = model.density.prior(boxes.corners)
    pyramid = model.pyramid(maps, SIZES)
    # The points of the samples are copied to a device once.
    model.side_densities(pyramid, boxes, prior).expected_quality()
    with no_host_traffic():
        sides = model.side_densities(pyramid, boxes, prior)
        quality = sides.at_medians().expected_quality()
    assert quality.shape == (5,)


@pytest.mark.parametrize(
    'spoiler',
    [
        lambda y: float(y.sum()),
        lambda y: y[y > 0],
        lambda y: y + torch.ones(4),
        lambda y: y + torch.tensor([1.0, 2, 3, 4], device=y.device),
        lambda y: y.cpu(),
    ],
)
def test_the_check_itself_notices_synchronisation(spoiler):
    """Each of these, slipped into a log-density function, must raise."""

    def logdensity(y):
        spoiler(y)
        return y.sum(-1)

    start = torch.rand(2, 1, 4, device='meta')
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        with no_host_traffic():
            gradient_ascent(logdensity, start, (0.1,) * 4, 2)
