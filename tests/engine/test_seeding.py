"""Batches and their random draws depend on the iteration alone."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mmdet_ebm.engine.seeding import seed_all, seeded_loader


class Draws(Dataset):
    """Gives its index and what Python, numpy and torch draw."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return (
            index,
            random.random(),
            float(np.random.rand()),
            float(torch.rand(())),
        )


def loader(sampler=DefaultSampler, **options):
    inner = BatchSampler(sampler(Draws(), seed=3), 4, drop_last=False)
    return seeded_loader(
        DataLoader(
            Draws(), batch_sampler=inner, collate_fn=pseudo_collate, **options
        ),
        endless=sampler is InfiniteSampler,
    )


def some_batches(loader, count, *start):
    loader.batch_sampler.start_at(*start)
    return [batch for batch, _ in zip(loader, range(count))]


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_workers_and_skipping_change_nothing(sampler):
    whole = some_batches(loader(sampler), 3, 7, 0, 0)
    assert whole == some_batches(loader(sampler, num_workers=2), 3, 7, 0, 0)
    assert whole[1:] == some_batches(loader(sampler), 2, 7, 1, 1)
    assert whole[2:] == some_batches(
        loader(sampler, num_workers=1), 1, 7, 2, 2
    )


def test_every_sample_and_iteration_draws_anew():
    first = some_batches(loader(), 3, 7, 0, 0)
    again = some_batches(loader(), 3, 7, 3, 0)
    other = some_batches(loader(), 3, 8, 0, 0)
    draws = [
        torch.tensor(list(zip(*batch[1:])))
        for batches in (first, again, other)
        for batch in batches
    ]
    assert torch.cat(draws).flatten().unique().numel() == 3 * 3 * 10
    assert [b[0] for b in first] == [b[0] for b in again]


def test_an_endless_finite_sampler_shuffles_each_pass_and_can_skip_some():
    endless = loader()
    endless.batch_sampler.endless = True
    whole = some_batches(endless, 7, 7, 0, 0)
    indices = [
        sum((list(batch[0]) for batch in whole[i : i + 3]), []) for i in (0, 3)
    ]
    assert sorted(indices[0]) == sorted(indices[1]) == list(range(10))
    assert indices[0] != indices[1]
    assert some_batches(endless, 3, 7, 4, 4) == whole[4:7]


def test_seeding_a_step_fixes_all_generators():
    def draws():
        return (
            random.random(),
            float(np.random.rand()),
            float(torch.rand(())),
        )

    seed_all(5, 9)
    first = draws()
    assert draws() != first
    seed_all(5, 9)
    assert draws() == first
    seed_all(5, 10)
    assert not set(draws()) & set(first)
