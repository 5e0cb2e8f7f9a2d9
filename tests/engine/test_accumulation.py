"""What gradient accumulation averages over, as the documentation says."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from ..conftest import batch, build, energy_model_cfg
from .processes import share_noise


def weights_after_a_step(model, batches, count):
    model = copy.deepcopy(model)
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            accumulative_counts=count,
            optimizer=dict(type='SGD', lr=0.1),
        ),
    )
    for inputs, samples in batches:
        with wrapper.optim_context(model):
            losses = model.loss(inputs, samples)
        wrapper.update_params(model.parse_losses(losses)[0])
    return model.roi_head.refiner.head.shared_fcs[0].weight.detach()


@pytest.mark.parametrize(
    'reduction, counts, equal',
    [('mean', (3, 3), True), ('mean', (5, 1), False), ('sum', (5, 1), True)],
)
def test_small_batches_against_the_whole(
    monkeypatch, reduction, counts, equal
):
    share_noise(monkeypatch)
    cfg = energy_model_cfg()
    cfg.roi_head.refiner.loss.update(
        reduction=reduction, loss_weight=1.0 if reduction == 'mean' else 0.2
    )
    model = build(cfg).train()
    torch.nn.init.normal_(model.roi_head.refiner.head.fc_logdensity.weight)
    inputs, samples = batch(counts)
    parts = [(inputs[i : i + 1], samples[i : i + 1]) for i in range(2)]
    accumulated = weights_after_a_step(model, parts, 2)
    if reduction == 'sum':
        # Accumulating averages over the batches: half the sum of all.
        model.roi_head.refiner.loss_energy.loss_weight /= 2
    whole = weights_after_a_step(model, [(inputs, samples)], 1)
    assert equal == torch.allclose(accumulated, whole, rtol=1e-4, atol=1e-6)
