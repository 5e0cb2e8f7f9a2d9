"""Random draws that depend only on their place in a training.

mmengine seeds the generators once, and its checkpoints do not hold their
state. So a resumed training draws other noise and other augmentations than an
uninterrupted one. Here every draw follows from the seed of the training, the
rank of the process and the number of the iteration.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader

# The part of an iteration that draws: this, or one of its samples 1, 2, ...
TRAINING_STEP = 0


def seed_all(seed: int, iteration: int, part: int = TRAINING_STEP) -> None:
    """Seed Python, numpy and torch on all devices for a part of an iteration.

    Args:
        seed: The training's seed.
        iteration: Number of the iteration, from 0.
        part: ``TRAINING_STEP``, or a positive number for a sample.
    """
    _seed_all(seed, get_rank(), iteration, part)


def _seed_all(*key: int) -> None:
    number = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


class SeededBatch:
    """Indices of a batch; iterating seeds the generators before each of them.

    A loader iterates over it in the process that loads the samples. So their
    augmentation does not depend on the number of workers.
    """

    def __init__(self, indices: Sequence[int], key: tuple[int, ...]) -> None:
        self.indices = indices
        self.key = key

    def __iter__(self) -> Iterator[int]:
        for part, index in enumerate(self.indices, TRAINING_STEP + 1):
            _seed_all(*self.key, part)
            yield index


class SeededBatches:
    """Seeded batches of a batch sampler, from any iteration on.

    Args:
        batch_sampler: Gives the batches; its ``sampler`` decides the order.
        endless: After the last batch, start again in another order.
    """

    def __init__(self, batch_sampler, endless: bool) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.batch_size = batch_sampler.batch_size
        self.endless = endless
        self.start_at(0, 0, 0)

    def start_at(self, seed: int, iteration: int, skip: int) -> None:
        """Set where the next pass begins.

        Args:
            seed: The training's seed.
            iteration: Number of the first iteration that gets a batch.
            skip: Batches before it; none of their samples is loaded.
        """
        self._seed, self._iteration, self._skip = seed, iteration, skip

    def __iter__(self) -> Iterator[SeededBatch]:
        iteration, skip = self._iteration, self._skip
        for epoch in count():
            if self.endless and hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            exhausted = True
            for indices in self.batch_sampler:
                exhausted = False
                if skip > 0:
                    skip -= 1
                    continue
                yield SeededBatch(indices, (self._seed, get_rank(), iteration))
                iteration += 1
            if not self.endless:
                return
            if exhausted:
                raise ValueError(
                    'the training set does not fill one batch of '
                    f'{self.batch_size}'
                )

    def __len__(self) -> int:
        return len(self.batch_sampler)


def seeded_loader(loader: DataLoader, endless: bool = False) -> DataLoader:
    """The same loader with ``SeededBatches`` as its batch sampler."""
    names = (
        'num_workers',
        'collate_fn',
        'pin_memory',
        'timeout',
        'worker_init_fn',
        'multiprocessing_context',
        'generator',
        'prefetch_factor',
        'persistent_workers',
        'pin_memory_device',
    )
    return DataLoader(
        loader.dataset,
        batch_sampler=SeededBatches(loader.batch_sampler, endless),
        **{name: getattr(loader, name) for name in names},
    )
