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
from mmdet_ebm.models import Boxes, EnergyRefiner, IoUNetRefiner

from .test_refiner import features, refiner

SIZES = [(96, 96), (80, 64)]


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


def meta_inputs():
    maps = [f.to('meta') for f in features()]
    corners = [torch.rand(n, 4, device='meta') for n in (3, 2)]
    labels = [torch.zeros(n, dtype=torch.long, device='meta') for n in (3, 2)]
    return maps, corners, labels


@pytest.mark.parametrize('memory_saving', [None, True])
@pytest.mark.parametrize(
    'loss',
    [
        'NCEPlusLoss',
        'NCELoss',
        'MLISLoss',
        'KLDISLoss',
        'MLMCMCLoss',
        'SMLoss',
        'DSMLoss',
        'LocalizationConfidenceLoss',
    ],
)
def test_training_step(loss, memory_saving):
    samples = {} if loss == 'SMLoss' else dict(num_samples=8)
    model = (
        refiner(loss=dict(type=loss, **samples), memory_saving=memory_saving)
        .to('meta')
        .train()
    )
    maps, corners, labels = meta_inputs()
    with no_host_traffic():
        loss = model.loss(maps, corners, labels, SIZES)['loss_energy']
        loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('kind', [EnergyRefiner, IoUNetRefiner])
def test_refinement(kind):
    model = refiner(kind).to('meta')
    maps, corners, labels = meta_inputs()
    with no_host_traffic():
        surface = model.surface(maps, SIZES)
        boxes = Boxes.from_images(corners, labels)
        refined = model.refine(surface, boxes, SIZES)
        values = model.logdensity(surface, boxes)
    assert refined.corners.shape == (5, 4) and values.shape == (5,)


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
