"""Randomness that depends on where in a training it is drawn, on nothing else.

mmengine seeds once, and no checkpoint holds the state of the generators: a
resumed training draws other noise and augments other images than one that was
never interrupted. Here every draw follows from the training's seed, the
process's rank and the number of the iteration.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader

# What is drawn in an iteration: the training step, or its samples 1, 2, ...
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
    """Indices of a batch. Iterating seeds the generators before each of them.

    A loader iterates over it where it loads the samples, in a worker or in the
    main process, and so their augmentation depends on neither.
    """

    def __init__(self, indices: Sequence[int], key: tuple[int, ...]) -> None:
        self.indices = indices
        self.key = key

    def __iter__(self) -> Iterator[int]:
        for part, index in enumerate(self.indices, TRAINING_STEP + 1):
            _seed_all(*self.key, part)
            yield index


class SeededBatches:
    """A batch sampler's batches, seeded, from any iteration on.

    Args:
        batch_sampler: What to draw from; its ``sampler`` decides the order.
        endless: Begin anew, with the next order, when it is exhausted.
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
            skip: Batches to leave out before it; nothing of them is loaded.
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
