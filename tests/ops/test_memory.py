"""Memory that is asked for in large pages."""

import pytest
import torch

from mmdet_ebm.ops import memory


@pytest.mark.parametrize('shape', [(0, 3), (5, 3), (1 << 11, 1 << 10)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_is_ordinary_memory(shape, dtype):
    tensor = memory.empty(shape, dtype, torch.device('cpu'))
    assert tensor.shape == shape and tensor.dtype == dtype
    tensor.fill_(1)
    assert tensor.sum() == tensor.numel()


def test_advice_concerns_whole_pages_of_the_tensor_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(
        memory,
        '_madvise',
        lambda: lambda start, size, advice: calls.append((start, size)),
    )
    tensor = memory.empty((1 << 22,), torch.float32, torch.device('cpu'))
    memory.empty((10,), torch.float32, torch.device('cpu'))  # too small
    ((start, size),) = calls
    end = tensor.data_ptr() + 4 * tensor.numel()
    assert start % memory.mmap.PAGESIZE == 0
    assert tensor.data_ptr() <= start < start + size == end


def test_a_system_without_such_advice_changes_nothing(monkeypatch):
    monkeypatch.setattr(memory, '_madvise', lambda: None)
    assert memory.empty(
        (1 << 22,), torch.float32, torch.device('cpu')
    ).shape == (1 << 22,)
