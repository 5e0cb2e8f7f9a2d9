"""Shipped configs and tools: train, test, resume, infer, on small data."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from pycocotools.coco import COCO

from ..conftest import (
    CONFIGS,
    ROOT,
    batch,
    build,
    detect_everything,
    num_classes,
    shrink,
)
from .conftest import run_tool

SHIPPED = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.glob('[a-z]*/*.py')
    # No detectors there; deltas that shrinking undoes.
    if path.parent.name != 'regression1d' and '_r101_' not in path.name
)
BCCD = next(
    (
        path
        for path in (
            os.environ.get('BCCD_ROOT', 'data/bccd'),
            ROOT / '../shared/data/bccd',
        )
        if Path(path, 'annotations/train.json').exists()
    ),
    None,
)


def shrunk_config(name, tmp_path, **changes):
    """A shipped config with a tiny model, short epochs, as a file."""
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model = shrink(cfg.model)
    cfg.default_hooks.logger.interval = 1
    cfg.train_cfg.max_epochs = 1
    cfg.train_cfg.val_interval = 1
    cfg.load_from = None
    cfg.merge_from_dict(changes)
    path = tmp_path / Path(name).name
    cfg.dump(path)
    return path


@pytest.mark.parametrize('name', SHIPPED)
def test_every_shipped_config_trains_and_predicts(name):
    cfg = Config.fromfile(CONFIGS / name)
    model = build(shrink(cfg.model)).train()
    inputs, samples = batch(num_classes=num_classes(cfg.model))
    losses = model.loss(inputs, copy.deepcopy(samples))
    loss, _ = model.parse_losses(losses)
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    detect_everything(model.eval())
    with torch.no_grad():
        results = model.predict(inputs, samples)
    assert all(len(r.pred_instances) > 0 for r in results)


def test_coco_recipe_is_the_published_one():
    cfg = Config.fromfile(
        CONFIGS / 'coco/faster-rcnn_r50_fpn_nce-plus_coco.py'
    )
    refiner = cfg.model.roi_head.refiner
    assert cfg.model.freeze_detector
    assert tuple(refiner.loss.sigmas) == (0.075, 0.15, 0.3)
    assert (refiner.loss.beta, refiner.loss.num_samples) == (0.1, 127)
    assert tuple(refiner.step_length) == (80e-5, 32e-4)
    assert cfg.train_cfg.max_iters == 60000
    assert cfg.param_scheduler[1].milestones == [40000, 50000]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
        1e-3,
        0.9,
        1e-4,
    )
    # 12544 x 1024 + 1024, 1024 x 1024 + 1024, 1024 x 80 + 80
    model = build(cfg.model)
    assert (
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        == 12_846_080 + 1_049_600 + 82_000
    )


@pytest.mark.parametrize(
    'method, loss, step_length',
    [
        ('nce-plus', 'NCEPlusLoss', (80e-5, 32e-4)),
        ('nce', 'NCELoss', (40e-5, 16e-4)),
        ('ml-is', 'MLISLoss', (40e-5, 16e-4)),
        ('kld-is', 'KLDISLoss', (40e-5, 16e-4)),
        ('ml-mcmc-8', 'MLMCMCLoss', (2.5e-5, 1e-4)),
        ('dsm', 'DSMLoss', (2.5e-5, 1e-4)),
        ('sm', 'SMLoss', (2.5e-5, 1e-4)),
        ('iou-net', 'LocalizationConfidenceLoss', (0.5, 0.5)),
    ],
)
@pytest.mark.parametrize(
    'data, stem',
    [('coco', 'r50_fpn'), ('digits', 'r18-half'), ('bccd', 'r18-half')],
)
def test_every_method_has_a_config_with_its_published_steps(
    method, loss, step_length, data, stem
):
    cfg = Config.fromfile(
        CONFIGS / f'{data}/faster-rcnn_{stem}_{method}_{data}.py'
    )
    refiner = build(shrink(cfg.model)).roi_head.refiner
    assert type(refiner.loss_energy).__name__ == loss
    assert refiner.step_length == step_length
    assert refiner.num_steps == (5 if method == 'iou-net' else 4)


@pytest.mark.parametrize(
    'base, classes',
    [
        ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 80),
        ('pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', 20),
        ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 80),
    ],
)
def test_the_readmes_delta_turns_any_of_mmdets_configs(
    base, classes, tmp_path
):
    readme = (ROOT / 'README.md').read_text()
    delta = re.search(r'```python\n(_base_ = .*?)```', readme, re.S).group(1)
    path = tmp_path / 'energy.py'
    path.write_text(delta.replace('./my_faster-rcnn.py', f'mmdet::{base}'))
    model = build(shrink(Config.fromfile(path).model)).train()
    assert model.roi_head.refiner.head.num_classes == classes
    loss = model.loss(*batch(num_classes=classes))['loss_energy']
    assert loss > 0


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """A plain and an energy checkpoint from the command line."""
    patch = pytest.MonkeyPatch()
    patch.setenv('DIGITS_ROOT', str(digits))
    folder = tmp_path_factory.mktemp('trained')
    plain = shrunk_config('digits/faster-rcnn_r18-half_digits.py', folder)
    energy = shrunk_config(
        'digits/faster-rcnn_r18-half_nce-plus_digits.py', folder
    )
    run_tool(patch, 'train', plain, '--work-dir', folder / 'plain')
    checkpoint = folder / 'plain' / 'epoch_1.pth'
    run_tool(
        patch,
        'train',
        energy,
        '--work-dir',
        folder / 'energy',
        '--cfg-options',
        f'load_from={checkpoint}',
    )
    yield dict(
        folder=folder,
        plain=plain,
        energy=energy,
        plain_checkpoint=checkpoint,
        checkpoint=folder / 'energy' / 'epoch_1.pth',
    )
    patch.undo()


def state(path):
    return torch.load(path, weights_only=True)['state_dict']


def test_energy_training_starts_from_and_keeps_the_plain_detector(trained):
    plain, energy = (
        state(trained['plain_checkpoint']),
        state(trained['checkpoint']),
    )
    assert set(plain) < set(energy)
    assert all(torch.equal(plain[key], energy[key]) for key in plain)


def test_training_log_tells_truth_from_noise(trained):
    # In text: mmengine's visualizer is one for the whole process.
    (log,) = (trained['folder'] / 'energy').glob('*/*.log')
    lines = [
        dict(re.findall(r'(\w+): ([-+.\de]+)', line))
        for line in log.read_text().splitlines()
        if 'loss_energy' in line
    ]
    assert len(lines) == 2
    for line in lines:
        step = {name: float(value) for name, value in line.items()}
        assert step['loss'] == step['loss_energy']
        assert 0 <= step['acc_energy'] <= 100
        assert step['logdensity_gap'] == pytest.approx(
            step['logdensity_truth'] - step['logdensity_noise'], abs=2e-4
        )


def test_test_tool_reports_ap_and_ap90(trained, monkeypatch, tmp_path):
    run_tool(
        monkeypatch,
        'test',
        trained['energy'],
        trained['checkpoint'],
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'out.pkl',
        '--cfg-options',
        'model.roi_head.refinement.ascent=False',
    )
    (written,) = tmp_path.glob('*/*.json')
    metrics = json.loads(written.read_text())
    assert {'coco/bbox_mAP', 'coco/bbox_mAP_75', 'coco/bbox_mAP_90'} <= set(
        metrics
    )
    assert (tmp_path / 'out.pkl').exists()


def test_resume_without_a_checkpoint_starts_from_load_from(
    trained, monkeypatch, tmp_path
):
    run_tool(
        monkeypatch,
        'train',
        trained['energy'],
        '--work-dir',
        tmp_path,
        '--resume',
        '--cfg-options',
        f'load_from={trained["plain_checkpoint"]}',
    )
    plain = state(trained['plain_checkpoint'])
    energy = state(tmp_path / 'epoch_1.pth')
    assert all(torch.equal(plain[key], energy[key]) for key in plain)


def test_training_on_a_random_frozen_detector_is_refused(
    trained, monkeypatch, tmp_path
):
    with pytest.raises(SystemExit, match='load_from'):
        run_tool(
            monkeypatch, 'train', trained['energy'], '--work-dir', tmp_path
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_of_a_whole_detector_on_a_cpu_is_refused(
    trained, monkeypatch, tmp_path
):
    with pytest.raises(SystemExit, match='frozen detector'):
        run_tool(
            monkeypatch,
            'train',
            trained['plain'],
            '--amp',
            '--work-dir',
            tmp_path,
        )


def test_amp_trains_with_the_learning_rate_of_the_batch(
    trained, monkeypatch, tmp_path
):
    """--amp and --auto-scale-lr: 8 images where the rate is for 16."""
    run_tool(
        monkeypatch,
        'train',
        trained['energy'],
        '--amp',
        '--auto-scale-lr',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        f'load_from={trained["plain_checkpoint"]}',
        'auto_scale_lr.base_batch_size=16',
        'auto_scale_lr.enable=False',
    )
    written = Config.fromfile(tmp_path / trained['energy'].name)
    assert written.optim_wrapper.type == 'BFloat16OptimWrapper'
    checkpoints = [
        torch.load(path)
        for path in (tmp_path / 'epoch_1.pth', trained['checkpoint'])
    ]
    key = 'roi_head.refiner.head.shared_fcs.0.weight'
    mixed, full = (c['state_dict'][key] for c in checkpoints)
    assert mixed.dtype == torch.float32 and mixed.isfinite().all()
    assert not torch.equal(mixed, full)
    rates = [
        c['optimizer']['param_groups'][0]['initial_lr'] for c in checkpoints
    ]
    assert rates[0] == pytest.approx(rates[1] / 2)


def test_inference_tells_what_it_did_by_its_exit_status(
    trained, monkeypatch, tmp_path, digits, capsys
):
    folder = tmp_path / 'images'
    folder.mkdir()
    for index, path in enumerate(
        sorted((digits / 'images').glob('test_*.png'))[:3]
    ):
        (folder / f'{index}.png').write_bytes(path.read_bytes())

    def infer(*arguments):
        with pytest.raises(SystemExit) as done:
            run_tool(
                monkeypatch,
                'infer',
                trained['energy'],
                trained['checkpoint'],
                *arguments,
                '--out-dir',
                tmp_path / 'out',
                '--cfg-options',
                'model.test_cfg.rcnn.score_thr=0.01',
            )
        return done.value.code

    assert infer(folder, '--batch-size', 2, '--compare') == 0
    (folder / 'broken.jpg').write_bytes(b'not an image')
    assert infer(folder, '--compare') == 3
    output = capsys.readouterr().out
    assert '3 done (3 by an earlier run), 1 skipped' in output
    assert 'broken.jpg' in output
    summary = json.loads((tmp_path / 'out/summary.json').read_text())
    assert (summary['done'], list(summary['skipped'])) == (3, ['broken.jpg'])
    assert len(list((tmp_path / 'out/vis').glob('*.png.jpg'))) == 3
    assert len(COCO(str(tmp_path / 'out/predictions.json')).imgs) == 3
    assert 'nowhere' in infer(tmp_path / 'nowhere')  # a message: status 1
    assert infer(folder, '--batch-size', 0) == 2


def test_interrupted_inference_says_how_to_go_on(
    trained, monkeypatch, tmp_path, capsys
):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        'mmdet_ebm.apis.EnergyDetInferencer.stream', interrupted
    )
    with pytest.raises(SystemExit) as done:
        run_tool(
            monkeypatch,
            'infer',
            trained['energy'],
            trained['checkpoint'],
            tmp_path,
            '--out-dir',
            tmp_path,
        )
    assert done.value.code == 130
    assert 'the same command continues' in capsys.readouterr().err


def test_evaluation_with_a_plain_checkpoint_needs_the_stages_off(
    trained, monkeypatch, tmp_path
):
    """Random energies would pass for a bad method."""
    arguments = (
        trained['energy'],
        trained['plain_checkpoint'],
        '--work-dir',
        tmp_path,
    )
    with pytest.raises(SystemExit, match='no weights of an energy model'):
        run_tool(monkeypatch, 'test', *arguments)
    run_tool(
        monkeypatch,
        'test',
        *arguments,
        '--cfg-options',
        'model.roi_head.refinement.energy_nms=False',
        'model.roi_head.refinement.ascent=False',
    )


def test_test_time_augmentation_runs(trained, monkeypatch, tmp_path):
    run_tool(
        monkeypatch,
        'test',
        trained['energy'],
        trained['checkpoint'],
        '--work-dir',
        tmp_path,
        '--tta',
    )
    assert list(tmp_path.glob('*/*.json'))


def test_comparing_stages_gives_every_figure(trained, monkeypatch, tmp_path):
    out = tmp_path / 'figures.json'
    run_tool(
        monkeypatch,
        'compare_stages',
        trained['energy'],
        trained['checkpoint'],
        '--control-config',
        trained['plain'],
        '--control',
        trained['plain_checkpoint'],
        '--resamples',
        5,
        '--ascents',
        '--out',
        out,
        '--device',
        'cpu',
    )
    figures = json.loads(out.read_text())
    stages = figures['stages']
    assert set(stages) == {
        'plain',
        'energy NMS',
        'ascent',
        'both',
        'control',
        'published schedule',
        'bfloat16',
    }
    assert 'ascent - published schedule' in figures['differences']
    # The control is the same detector here: the plain stage must equal it.
    assert stages['plain']['runs'] == stages['control']['runs']
    assert set(figures['differences']['both - control']['AP']) == {
        'difference',
        'low',
        'high',
    }


@pytest.mark.skipif(
    BCCD is None,
    reason='BCCD is not on this machine; set BCCD_ROOT to its folder',
)
def test_bccd_trains_from_real_images(monkeypatch, tmp_path):
    monkeypatch.setenv('BCCD_ROOT', str(BCCD))
    plain = shrunk_config(
        'bccd/faster-rcnn_r18-half_bccd.py',
        tmp_path,
        **{
            'train_dataloader.dataset.indices': 4,
            'train_cfg.val_interval': 10,
        },
    )
    energy = shrunk_config(
        'bccd/faster-rcnn_r18-half_nce-plus_bccd.py',
        tmp_path,
        **{
            'train_dataloader.dataset.indices': 4,
            'train_cfg.val_interval': 10,
        },
    )
    run_tool(monkeypatch, 'train', plain, '--work-dir', tmp_path / 'plain')
    run_tool(
        monkeypatch,
        'train',
        energy,
        '--work-dir',
        tmp_path / 'energy',
        '--cfg-options',
        f'load_from={tmp_path}/plain/epoch_1.pth',
    )
    assert (tmp_path / 'energy/epoch_1.pth').exists()
