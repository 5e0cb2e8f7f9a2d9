"""Resuming in the middle of the batches, also when they have changed."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmdet_ebm.engine.launch import make_resumable

NUM_IMAGES = 16


@DATASETS.register_module()
class Numbers(Dataset):
    """Gives its indices."""

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, index):
        return torch.tensor(float(index))


@MODELS.register_module()
class Recorder(BaseModel):
    """Records the batches that it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, *batch, mode):
        self.seen.append([int(number) for number in batch])
        return dict(loss=(self.weight * torch.stack(batch)).sum())


def train(folder, loop, resume=None, batch_size=4, save_every=3):
    """Train, with a checkpoint now and then; the batches that were seen."""
    cfg = Config(
        dict(
            model=dict(type='Recorder'),
            work_dir=str(folder),
            train_dataloader=dict(
                dataset=dict(type='Numbers'),
                sampler=dict(
                    type='DefaultSampler'
                    if 'max_epochs' in loop
                    else 'InfiniteSampler',
                    shuffle=True,
                ),
                batch_size=batch_size,
                num_workers=0,
                collate_fn=dict(type='pseudo_collate'),
            ),
            train_cfg=loop,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook', by_epoch=False, interval=save_every
                )
            ),
            randomness=dict(seed=0),
            default_scope='mmengine',
            experiment_name=f'{folder.name}-{batch_size}-{resume}',
            resume=resume is not None,
            load_from=resume and str(folder / f'iter_{resume}.pth'),
        )
    )
    make_resumable(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.model.seen


def epochs(count):
    return dict(by_epoch=True, max_epochs=count)


def in_order(batches):
    return sorted(number for batch in batches for number in batch)


@pytest.mark.parametrize('cut', [3, 4, 6])
def test_an_epoch_goes_on_where_it_was_cut(tmp_path, cut):
    """Also at the end of one: 4 is the last iteration of the first."""
    whole = train(tmp_path / 'a', epochs(2))
    train(tmp_path / 'b', epochs(2), save_every=1)
    assert train(tmp_path / 'b', epochs(2), resume=cut) == whole[cut:]


def test_with_another_batch_size_the_epoch_starts_again(tmp_path, capsys):
    """Six of eight batches of four, then batches of two."""
    train(tmp_path, epochs(2))
    rest = train(tmp_path, epochs(2), resume=6, batch_size=2, save_every=5)
    assert len(rest) == 8 and in_order(rest) == list(range(NUM_IMAGES))
    assert 'batch 4 -> 2' in capsys.readouterr().out
    # Interrupted once more: from iteration 11, five batches into the epoch.
    again = train(tmp_path, epochs(2), resume=10, batch_size=2)
    assert again == rest[4:]


def test_with_another_batch_size_iterations_go_on_after_the_images_seen(
    tmp_path, capsys
):
    def iterations(count):
        return dict(by_epoch=False, max_iters=count)

    seen = train(tmp_path, iterations(6))[:3]
    rest = train(tmp_path, iterations(5), resume=3, batch_size=2, save_every=1)
    assert in_order([*seen, *rest]) == list(range(NUM_IMAGES))
    assert 'had 4 images' in capsys.readouterr().out
    again = train(tmp_path, iterations(5), resume=4, batch_size=2)
    assert again == rest[1:]
