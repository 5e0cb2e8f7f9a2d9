"""What gradient accumulation averages over, as the documentation says."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from ..processes import share_noise
from ..small_models import batch, build, energy_model_cfg


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
    return model.energy_model.head.shared_fcs[0].weight.detach()


@pytest.mark.parametrize(
    'reduction, counts, equal',
    [('mean', (3, 3), True), ('mean', (5, 1), False), ('sum', (5, 1), True)],
)
def test_equal_to_the_whole_batch_if_counts_are_equal_or_losses_summed(
    monkeypatch, reduction, counts, equal
):
    share_noise(monkeypatch)
    cfg = energy_model_cfg()
    cfg.energy_model.loss.update(
        reduction=reduction, loss_weight=1.0 if reduction == 'mean' else 0.2
    )
    model = build(cfg).train()
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    inputs, samples = batch(counts)
    parts = [(inputs[i : i + 1], samples[i : i + 1]) for i in range(2)]
    accumulated = weights_after_a_step(model, parts, 2)
    if reduction == 'sum':
        # Accumulating averages over the batches: half the sum of all.
        model.energy_model.loss_energy.loss_weight /= 2
    whole = weights_after_a_step(model, [(inputs, samples)], 1)
    assert equal == torch.allclose(accumulated, whole, rtol=1e-4, atol=1e-6)
