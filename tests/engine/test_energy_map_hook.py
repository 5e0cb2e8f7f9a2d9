"""A few pictures in each validation."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS

from mmdet_ebm.engine import EnergyMapHook

from ..small_models import batch, build, energy_model_cfg


class Pictures(list):
    def add_image(self, name, image, step):
        self.append((name, image, step))


@pytest.fixture
def runner(tmp_path):
    model = build(energy_model_cfg()).eval()
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    torch.nn.init.normal_(
        model.detector.roi_head.bbox_head.fc_cls.weight, std=0.2
    )
    model.detector.roi_head.test_cfg.update(score_thr=0.2, max_per_img=3)
    cv2.imwrite(str(tmp_path / 'blank.png'), np.zeros((192, 192, 3), np.uint8))
    return SimpleNamespace(
        model=model,
        visualizer=Pictures(),
        iter=7,
        picture=tmp_path / 'blank.png',
        val_dataloader=SimpleNamespace(
            dataset=SimpleNamespace(metainfo=dict(classes=('a', 'b', 'c')))
        ),
    )


def validate(hook, runner, batches=2):
    hook.before_val_epoch(runner)
    for index in range(batches):
        inputs, samples = batch()
        for sample in samples:
            sample.set_metainfo(dict(img_path=str(runner.picture)))
        with torch.no_grad():
            outputs = runner.model.predict(inputs, samples)
        hook.after_val_iter(
            runner, index, dict(inputs=inputs, data_samples=samples), outputs
        )
    hook.after_val_epoch(runner)
    return runner.visualizer


def test_the_first_images_are_drawn(runner):
    hook = HOOKS.build(
        dict(
            type='EnergyMapHook', num_images=3, num_detections=2, resolution=5
        )
    )
    hook.before_run(runner)
    drawn = validate(hook, runner)
    assert [name for name, *_ in drawn] == [
        'energy_map_blank_0',
        'energy_map_blank_1',
    ] * 3
    for _, image, step in drawn:
        assert step == 7 and image.shape[2] == 3 and image.std() > 10


def test_interval_and_threshold(runner):
    hook = EnergyMapHook(num_images=1, interval=2, resolution=5)
    counts = []
    for _ in range(3):
        counts.append(len(validate(hook, runner, batches=1)))
    assert counts == [1, 1, 2]
    assert not validate(
        EnergyMapHook(score_thr=0.99),
        SimpleNamespace(**{**vars(runner), 'visualizer': Pictures()}),
    )


def test_a_model_without_energies_is_refused_at_the_start(runner):
    runner.model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match='has no energy model'):
        EnergyMapHook().before_run(runner)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(num_images=0),
        dict(num_detections=0),
        dict(interval=0),
        dict(resolution=1),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match='must be at least 1'):
        EnergyMapHook(**wrong)
