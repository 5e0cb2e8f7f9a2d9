"""Shipped configs give models that train, with the published settings."""

import copy
import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from ..small_models import (
    CONFIGS,
    ROOT,
    batch,
    build,
    detect_everything,
    num_classes,
    shrink,
)

SHIPPED = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.glob('[a-z]*/*.py')
    # No detectors there; deltas that shrinking undoes.
    if path.parent.name not in ('regression1d', 'tracking')
    and '_r101_' not in path.name
)


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
    energy_model = cfg.model.energy_model
    loss = energy_model.loss
    assert tuple(loss.sigmas) == (0.075, 0.15, 0.3)
    assert (loss.beta, loss.num_samples) == (0.1, 127)
    assert tuple(energy_model.ascent.step_length) == (80e-5, 32e-4)
    assert cfg.train_cfg.max_iters == 60000
    assert cfg.param_scheduler[1].milestones == [40000, 50000]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
        1e-3,
        0.9,
        1e-4,
    )
    # 12544 x 1024 + 1024, 1024 x 1024 + 1024, 1024 x 80 + 80
    model = MODELS.build(cfg.model)
    assert model.freeze_detector
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
        ('iou-net', 'LocalizationConfidenceLoss', 0.5),
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
    energy_model = build(shrink(cfg.model)).energy_model
    assert type(energy_model.loss_energy).__name__ == loss
    assert energy_model.ascent.step_length == step_length
    assert energy_model.ascent.num_steps == (5 if method == 'iou-net' else 4)


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
    path.write_text(delta.replace('./my_detector.py', f'mmdet::{base}'))
    model = build(shrink(Config.fromfile(path).model)).train()
    assert model.energy_model.head.num_classes == classes
    loss = model.loss(*batch(num_classes=classes))['loss_energy']
    assert loss > 0
