"""Truth against noise: figures by hand."""

import pytest
import torch

from mmdet_ebm.core import separation


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
