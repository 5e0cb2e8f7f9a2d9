"""mmengine's training loops, resumed exactly, also within an epoch.

They train on the same batches in the same order as mmengine's loops. Every
random draw follows from (seed, rank, iteration), see ``seeding``. A resumed
training skips the batches that it has seen without loading them. mmengine's
loop by iterations loads and drops them; its loop by epochs starts the epoch
again.

Checkpoints say how many batches were seen, and of how many images, since the
number of the iteration does not tell if the batch size has changed.
"""

import math
from itertools import chain, repeat

from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from .seeding import seed_all, seeded_loader

# In the message hub, which checkpoints hold.
_START = 'start_of_batches'


class _Batches(chain):
    """Batches that can be skipped as mmengine's maintained fork does it."""

    def skip_iter(self, num_iters: int) -> None:
        for _ in range(num_iters):
            next(self)


class _Seeded:
    """The common part of both loops; must come before mmengine's class."""

    def run_iter(self, *args) -> None:
        """Train on one batch; see mmengine's loops for the arguments."""
        seed_all(self.runner.seed, self._iter)
        super().run_iter(*args)

    def _note_start(self, **place: int) -> None:
        """Note where counting begins; checkpoints hold it."""
        self.runner.message_hub.update_info(
            _START, dict(place, iteration=self._iter - self._skip, **self._of)
        )

    @property
    def _of(self) -> dict[str, int]:
        """What batches are made of; another makes other batches."""
        return dict(
            batch=self.dataloader.batch_sampler.batch_size * get_world_size(),
            images=len(self.dataloader.dataset),
        )

    def _order_by_seed(self) -> None:
        """Use the seed of the checkpoint, which was read after the loader."""
        sampler = self.dataloader.batch_sampler.sampler
        if self.runner.seed != self._built_with and hasattr(sampler, 'seed'):
            sampler.seed = self._built_with = self.runner.seed


@LOOPS.register_module()
class ResumableEpochTrainLoop(_Seeded, EpochBasedTrainLoop):
    """``EpochBasedTrainLoop``, resumed exactly.

    Args:
        runner: The runner.
        dataloader: Loader of the training set, or its config.
        max_epochs: Epochs to train.
        **kwargs: Arguments of ``EpochBasedTrainLoop``.
    """

    def __init__(self, runner, dataloader, max_epochs: int, **kwargs) -> None:
        super().__init__(runner, dataloader, max_epochs, **kwargs)
        self._built_with = runner.seed
        self.dataloader = seeded_loader(self.dataloader)
        self._skip = 0

    def run(self):
        """Train from the iteration of the checkpoint, if there is one."""
        self._order_by_seed()
        if self._iter:
            self._skip = self._seen_of_epoch()
        return super().run()

    def _seen_of_epoch(self) -> int:
        start = self.runner.message_hub.runtime_info.get(_START)
        if start is None:  # mmengine's own loop wrote the checkpoint
            if self._iter != self._epoch * len(self.dataloader):
                print_log(
                    'The checkpoint does not say how much of its epoch was '
                    'done. Continuing at the beginning of the epoch.',
                    'current',
                )
            return 0
        changes = [
            f'{name} {start[name]} -> {value}'
            for name, value in self._of.items()
            if start[name] != value
        ]
        if changes:
            print_log(
                'Images are put together differently than by the checkpoint '
                f'({", ".join(changes)}). Continuing at the beginning of '
                f'epoch {self._epoch + 1}; schedules count iterations.',
                'current',
            )
            return 0
        # Saved after the epoch, it is of the one before.
        of_this = start['epoch'] == self._epoch
        return self._iter - start['iteration'] if of_this else 0

    def run_epoch(self) -> None:
        """Iterate over one epoch, or the rest of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self._note_start(epoch=self._epoch)
        skip, self._skip = self._skip, 0
        self.dataloader.batch_sampler.start_at(
            self.runner.seed, self._iter, skip
        )
        for idx, data_batch in enumerate(self.dataloader, skip):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class ResumableIterTrainLoop(_Seeded, IterBasedTrainLoop):
    """``IterBasedTrainLoop``, resumed exactly.

    Args:
        runner: The runner.
        dataloader: Loader of the training set, or its config.
        max_iters: Iterations to train.
        **kwargs: Arguments of ``IterBasedTrainLoop``.
    """

    def __init__(self, runner, dataloader, max_iters: int, **kwargs) -> None:
        if isinstance(dataloader, dict):
            dataloader = runner.build_dataloader(
                dataloader,
                seed=runner.seed,
                diff_rank_seed=runner._randomness_cfg.get(
                    'diff_rank_seed', False
                ),
            )
        # mmengine starts an iterator and its workers here, before it is known
        # where to begin. So it gets another loader, which is never read.
        super().__init__(
            runner, DataLoader(dataloader.dataset), max_iters, **kwargs
        )
        self._built_with = runner.seed
        self.dataloader = seeded_loader(dataloader, endless=True)

    def run(self):
        """Train from the iteration of the checkpoint, if there is one."""
        self._order_by_seed()
        self._skip = self._batches_seen()
        self._note_start()
        self.dataloader.batch_sampler.start_at(
            self.runner.seed, self._iter, self._skip
        )
        # mmengine drops the batches of past iterations; here they are empty.
        self.dataloader_iterator = _Batches(
            repeat(None, self._iter), self.dataloader
        )
        return super().run()

    def _batches_seen(self) -> int:
        start = self.runner.message_hub.runtime_info.get(_START)
        if start is None:  # at the beginning, or mmengine's own loop
            return self._iter
        seen = self._iter - start['iteration']
        if start['batch'] == self._of['batch']:
            return seen
        batches = math.ceil(seen * start['batch'] / self._of['batch'])
        print_log(
            f'Batches had {start["batch"]} images when the checkpoint was '
            f'written and have {self._of["batch"]} now. Continuing after '
            f'{batches} of these; schedules count iterations.',
            'current',
        )
        return batches
