"""What is seen of a training, and what the log file holds."""

import logging
import re

import pytest
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, RUNNERS
from mmengine.runner import Runner
from pycocotools.coco import COCO
from torch import nn, zeros
from torch.utils.data import Dataset

from mmdet_ebm.engine import make_resumable, screen


@DATASETS.register_module()
class SixZeros(Dataset):
    """Gives zeros."""

    metainfo = dict()

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return zeros(1)


@MODELS.register_module()
class TwoLosses(BaseModel):
    """Has losses of 1 and 2, and figures."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(zeros(1))

    def forward(self, *batch, mode):
        if mode == 'predict':
            return batch
        zero = 0 * self.weight.sum()
        return dict(
            loss_a=zero + 1, loss_b=zero + 2, acc=zero + 75, other=zero
        )


@METRICS.register_module()
class HalfRight(BaseMetric):
    """An AP that is known."""

    default_prefix = 'coco'

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(bbox_mAP=0.5, bbox_mAP_75=0.25, bbox_mAP_s=-1.0)


@HOOKS.register_module()
class Talker(Hook):
    """Logs as hooks of users and of mmengine do."""

    def before_train(self, runner):
        runner.logger.info('information of a user')
        print_log('information by print_log', 'current')
        runner.logger.warning('a warning')
        runner.logger.warning('"FileClient" will be deprecated in future')
        runner.logger.warning('a.b is skipped since its requires_grad=False')
        runner.logger.error('an error')


@RUNNERS.register_module()
class OwnRunner(Runner):
    """A runner of the user's."""


def config(folder, **changes):
    loader = dict(
        dataset=dict(type='SixZeros'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        batch_size=2,
        num_workers=0,
        collate_fn=dict(type='pseudo_collate'),
    )
    cfg = Config(
        dict(
            model=dict(type='TwoLosses'),
            work_dir=str(folder),
            train_dataloader=loader,
            val_dataloader=loader,
            val_evaluator=dict(type='HalfRight'),
            val_cfg=dict(),
            test_dataloader=loader,
            test_evaluator=dict(type='HalfRight'),
            test_cfg=dict(),
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            custom_hooks=[dict(type='Talker')],
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook', save_param_scheduler=False
                )
            ),
            randomness=dict(seed=0),
            default_scope='mmengine',
            experiment_name=folder.name,
        )
    )
    cfg.merge_from_dict(changes)
    make_resumable(cfg)
    return cfg


def train(folder, capsys, verbose=False, **changes):
    """Train; the lines on the screen and the text of the log file."""
    with screen.few_lines(verbose):
        screen.build_runner(config(folder, **changes), verbose).train()
    (log,) = folder.glob('*/*.log')
    return capsys.readouterr().out.splitlines(), log.read_text()


def without_times(lines):
    return [re.sub(r' in \d\d:\d\d \([\d.]+/s\)', '', line) for line in lines]


def test_a_training_shows_losses_metrics_and_where_things_are(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    lines, _ = train(tmp_path / 'short', capsys)
    (log,) = (tmp_path / 'short').glob('*/*.log')
    assert without_times(lines) == [
        'information of a user',
        'information by print_log',
        'warning: a warning',
        'error: an error',
        'training on 6 images, 2 epochs of 3 batches',
        f'log: {log.relative_to(tmp_path)}',
        *(
            f'epoch {epoch}/2: 3/3 batches, '
            'loss 3.0000 (loss_a 1.0000, loss_b 2.0000), acc 75.0000'
            for epoch in (1, 2)
        ),
        'validation: 3/3 batches, AP 50.0, AP75 25.0',
        'checkpoint: short/epoch_2.pth',
    ]


def test_the_log_file_is_that_of_mmengine(tmp_path, capsys):
    def lines(text):
        """Without times, paths and what differs from run to run."""
        text = re.sub(r'\d+/\d+/\d+ [\d:]+ - ', '', text)
        text = re.sub(r'(quiet|all)(_\d+_\d+)?', '', text)
        text = re.sub(r'(eta|time|data_time): [\d:.]+', '', text)
        return text.splitlines()

    _, quiet = train(tmp_path / 'quiet', capsys)
    shown, everything = train(tmp_path / 'all', capsys, verbose=True)
    assert lines(quiet) == lines(everything)
    assert 'Hooks will be executed' in quiet and '"FileClient"' in quiet
    assert any('Hooks will be executed' in line for line in shown)
    assert not any('3/3 batches' in line for line in shown)


def test_trainings_by_iterations_have_a_line_for_each_validation(
    tmp_path, capsys
):
    changes = dict(
        train_cfg=dict(
            _delete_=True, by_epoch=False, max_iters=5, val_interval=2
        ),
        train_dataloader=dict(
            sampler=dict(_delete_=True, type='InfiniteSampler')
        ),
    )
    lines, _ = train(tmp_path / 'iters', capsys, **changes)
    assert [
        line.partition(' batches')[0] for line in lines if 'batches' in line
    ] == [
        'to iteration 2: 2/2',
        'validation: 3/3',
        'to iteration 4: 4/4',
        'validation: 3/3',
        'to iteration 5: 5/5',
        'validation: 3/3',
    ]


def test_a_test_shows_metrics_and_their_file(tmp_path, capsys):
    with screen.few_lines():
        screen.build_runner(config(tmp_path / 'test')).test()
    lines = without_times(capsys.readouterr().out.splitlines())
    (metrics,) = (tmp_path / 'test').glob('*/*.json')
    assert lines[0] == 'testing on 6 images'
    assert lines[2:] == [
        'test: 3/3 batches, AP 50.0, AP75 25.0',
        f'metrics: {metrics}',
    ]


def test_runners_of_a_user_are_kept(tmp_path, capsys):
    cfg = config(tmp_path / 'own', runner_type='OwnRunner')
    assert isinstance(screen.build_runner(cfg), OwnRunner)
    with pytest.raises(KeyError, match='Nobody'):
        screen.build_runner(config(tmp_path / 'no', runner_type='Nobody'))


def test_only_what_pycocotools_is_doing_is_silenced(capsys):
    coco = COCO()
    with screen.few_lines():
        coco.createIndex()
        coco.dataset = dict(info=dict(year=2017))
        coco.info()
    assert capsys.readouterr().out == 'year: 2017\n'
    with screen.few_lines(verbose=True):
        coco.createIndex()
    assert 'creating index' in capsys.readouterr().out


def test_before_there_is_a_runner_mmengine_is_silent_too(capsys):
    with screen.few_lines():
        print_log('Loads checkpoint by local backend from path: x')
        print_log('kept', 'current', logging.WARNING)
    assert capsys.readouterr().out == 'warning: kept\n'
