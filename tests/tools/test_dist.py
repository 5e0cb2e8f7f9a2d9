"""dist_train.sh and dist_test.sh against one process."""

import json
import os
import re
import subprocess
import sys

import mmengine
import pytest
import torch
from mmengine.config import Config

from ..helpers import run_tool
from ..processes import run_forked, share_noise
from ..small_models import ROOT, build
from .test_pipeline import shrunk_config, state


def train_with_shared_noise(*arguments):
    share_noise()
    run_tool(pytest.MonkeyPatch(), 'train', *arguments)


def run_script(name, *arguments, **environment):
    done = subprocess.run(
        ['bash', f'tools/{name}.sh', *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, 'VENV': sys.prefix, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def logged_losses(log):
    return [float(x) for x in re.findall(r'loss_energy: ([0-9.]+)', log)]


def test_two_processes_end_with_the_weights_of_one(
    digits, tmp_path, monkeypatch
):
    """dist_train.sh with 2 x 2 images against 4, eight steps of SGD."""
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    config = shrunk_config(
        'digits/faster-rcnn_r18-half_nce-plus_digits.py',
        tmp_path,
        **{
            'train_dataloader.sampler.shuffle': False,
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 2,
            'train_dataloader.batch_sampler': None,
            'log_processor.num_digits': 6,
            'default_hooks.logger.interval': 1,
        },
    )
    cfg = Config.fromfile(config)
    cfg.optim_wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9)
    )
    cfg.param_scheduler = None
    # The fit finds nothing to fit, in the first process of two as in one.
    cfg.model.energy_model.density = 'fitted'
    cfg.load_from = str(tmp_path / 'plain.pth')
    torch.save(
        dict(state_dict=build(cfg.model.detector).state_dict()), cfg.load_from
    )

    cfg.train_dataloader.batch_size = 4
    cfg.dump(tmp_path / 'one.py')
    assert run_forked(
        train_with_shared_noise,
        tmp_path / 'one.py',
        '--work-dir',
        tmp_path / 'one',
    ) == [0]
    cfg.train_dataloader.batch_size = 2
    cfg.custom_imports.imports.append('tests.shared_noise')
    cfg.dump(tmp_path / 'two.py')
    shown = run_script(
        'dist_train', tmp_path / 'two.py', 2, '--work-dir', tmp_path / 'two'
    )

    for line in ('training on', 'epoch 1/2:', 'checkpoint:'):
        assert shown.count(line) == 1
    one, two = (
        state(tmp_path / name / 'epoch_2.pth') for name in ('one', 'two')
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    logs = [
        next((tmp_path / name).glob('*/*.log')).read_text()
        for name in ('one', 'two')
    ]
    assert len(logged_losses(logs[0])) == 8
    assert logged_losses(logs[1]) == pytest.approx(
        logged_losses(logs[0]), abs=2e-6
    )


def evaluate(*arguments):
    run_tool(pytest.MonkeyPatch(), 'test', *arguments)


def test_two_processes_evaluate_all_images(digits, tmp_path, monkeypatch):
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    config = shrunk_config(
        'digits/faster-rcnn_r18-half_digits.py',
        tmp_path,
        **{'model.test_cfg.rcnn.score_thr': 0.0},
    )
    torch.manual_seed(0)
    model = build(Config.fromfile(config).model)
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'plain.pth')
    for name, count in (('one', 1), ('two', 2)):
        assert (
            run_forked(
                evaluate,
                config,
                tmp_path / 'plain.pth',
                '--work-dir',
                tmp_path / name,
                '--out',
                tmp_path / f'{name}.pkl',
                '--launcher',
                'pytorch' if count > 1 else 'none',
                processes=count,
            )
            == [0] * count
        )
    one, two = (
        mmengine.load(tmp_path / f'{name}.pkl') for name in ('one', 'two')
    )
    assert [r['img_id'] for r in one] == [r['img_id'] for r in two]
    for mine, expected in zip(two, one):
        mine, expected = mine['pred_instances'], expected['pred_instances']
        torch.testing.assert_close(mine['bboxes'], expected['bboxes'])
    metrics = [
        json.loads(next((tmp_path / name).glob('*/*.json')).read_text())
        for name in ('one', 'two')
    ]
    key = 'coco/bbox_mAP_50'
    assert metrics[0][key] == metrics[1][key] > 0


@pytest.mark.parametrize(
    'environment, meeting',
    [
        ({}, '--standalone'),
        (
            dict(
                NNODES='3', NODE_RANK='2', MASTER_ADDR='10.0.0.1', PORT='1234'
            ),
            '--nnodes 3 --node_rank 2 --master_addr 10.0.0.1 '
            '--master_port 1234',
        ),
    ],
)
def test_scripts_pass_their_arguments_to_torchrun(
    environment, meeting, tmp_path
):
    (tmp_path / 'an env/bin').mkdir(parents=True)
    (tmp_path / 'an env/bin/python').symlink_to('/bin/echo')
    environment = dict(environment, VENV=str(tmp_path / 'an env'), PYTHON='no')
    run = f'-m torch.distributed.run {meeting} --nproc_per_node 8 tools/'
    end = '--launcher pytorch\n'
    assert (
        run_script(
            'dist_test',
            'a.py',
            'b.pth',
            8,
            '--tta',
            **environment,
        )
        == f'{run}test.py a.py b.pth --tta {end}'
    )
    assert (
        run_script('dist_train', 'a.py', 8, '--amp', **environment)
        == f'{run}train.py a.py --amp {end}'
    )
