"""mmengine's training loops, resumed exactly, also within an epoch.

They train on the same batches in the same order as mmengine's loops. Every
random draw follows from (seed, rank, iteration), see ``seeding``. A resumed
training skips the batches that it has seen without loading them. mmengine's
loop by iterations loads and drops them; its loop by epochs starts the epoch
again.
"""

from itertools import chain, repeat

from mmengine.logging import print_log
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from .seeding import seed_all, seeded_loader


class _Seeded:
    """The common part of both loops; must come before mmengine's class."""

    def run_iter(self, *args) -> None:
        """Train on one batch; see mmengine's loops for the arguments."""
        seed_all(self.runner.seed, self._iter)
        super().run_iter(*args)

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
        done = self._iter - self._epoch * len(self.dataloader)
        if 0 <= done < len(self.dataloader):
            self._skip = done
        else:
            print_log(
                f'The checkpoint is of epoch {self._epoch} and iteration '
                f'{self._iter}, an epoch has {len(self.dataloader)} '
                'iterations now: the batch size or the number of processes '
                'has changed. Continuing at the beginning of the epoch; '
                'schedules count iterations.',
                'current',
            )
        return super().run()

    def run_epoch(self) -> None:
        """Iterate over one epoch, or the rest of it."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
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
        self.dataloader.batch_sampler.start_at(
            self.runner.seed, self._iter, self._iter
        )
        # mmengine drops the batches of past iterations; here they are empty.
        self.dataloader_iterator = chain(
            repeat(None, self._iter), self.dataloader
        )
        return super().run()
