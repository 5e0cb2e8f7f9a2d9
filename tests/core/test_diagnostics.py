"""Truth against noise: figures by hand, and every method supplies them."""

import pytest
import torch

from mmdet_ebm.core import (
    DSM,
    KLDIS,
    MLIS,
    MLMCMC,
    NCE,
    SM,
    IoUNet,
    NCEPlus,
    RecordedLogDensity,
    separation,
    training_figures,
)

METHODS = {
    'NCE': NCE([0.1, 0.2], 6),
    'NCEPlus': NCEPlus([0.1, 0.2], 6, 1e-4),
    'MLIS': MLIS([0.1, 0.2], 6),
    'KLDIS': KLDIS([0.1, 0.2], 6, 0.05),
    'MLMCMC': MLMCMC(1e-3, 2, 6),
    'SM': SM(),
    'DSM': DSM(0.1, 6),
    'IoUNet': IoUNet(6),
}


def test_figures_by_hand():
    truth = torch.tensor([1.0, 3.0])
    noise = torch.tensor([[0.0, 2.0, -2.0, 0.0], [2.0, 2.0, 4.0, 4.0]])
    found = separation(truth, noise, torch.tensor([1.0, 3.0]))
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        dict(
            logdensity_truth=(1 + 3 * 3) / 4,
            logdensity_noise=3 * 3 / 4,
            logdensity_gap=1 / 4,
            acc_energy=(75 + 3 * 50) / 4,
        )
    )
    assert not any(v.requires_grad for v in found.values())


def test_instances_without_weight_do_not_count():
    truth = torch.tensor([1.0, torch.nan])
    noise = torch.tensor([[0.0], [torch.inf]])
    found = separation(truth, noise, torch.tensor([1.0, 0.0]))
    assert found['logdensity_gap'] == 1 and found['acc_energy'] == 100


def test_no_instances_give_zeros():
    found = separation(torch.zeros(0), torch.zeros(0, 3))
    assert all(v == 0 for v in found.values())


@pytest.mark.parametrize('name', METHODS)
def test_every_method_says_where_its_truth_is(name):
    """f is the distance from the target: 0 at the truth, below elsewhere."""
    targets = 0.1 * torch.randn(3, 4)
    calls = []

    def logdensity(y):
        calls.append(y)
        return -(y - targets[:, None]).square().sum(-1)

    record = RecordedLogDensity(logdensity)
    METHODS[name](record, targets)
    before = len(calls)
    figures = training_figures(METHODS[name], record, targets)
    extra = 0 if METHODS[name].truth_is_first else 1
    assert len(calls) == before + extra
    tolerance = 1e-6 if name == 'NCEPlus' else 1e-12  # shifted by beta
    assert abs(figures['logdensity_truth']) <= tolerance
    if name == 'SM':
        assert set(figures) == {'logdensity_truth'}
    else:
        assert figures['logdensity_gap'] > 0 and figures['acc_energy'] == 100


def test_a_method_that_does_not_say_has_no_figures():
    record = RecordedLogDensity(lambda y: y.sum(-1))
    assert training_figures(torch.nn.Identity(), record, torch.ones(1)) == {}
