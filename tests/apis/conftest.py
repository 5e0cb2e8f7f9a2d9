"""A small energy model that finds something everywhere, as files."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_ebm.apis import EnergyDetInferencer

from ..conftest import CONFIGS, build, shrink


def shrunk_bccd(folder, method='_nce-plus', **changes):
    """Config file of a shipped config with hardly any weights."""
    cfg = Config.fromfile(
        CONFIGS / f'bccd/faster-rcnn_r18-half{method}_bccd.py'
    )
    cfg.model = shrink(cfg.model)
    cfg.model.test_cfg.rpn.update(nms_pre=40, max_per_img=20)
    cfg.model.test_cfg.rcnn.update(score_thr=0.2, max_per_img=6)
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 72)
    cfg.load_from = None
    cfg.merge_from_dict(changes)
    path = folder / f'energy{method}.py'
    cfg.dump(path)
    return path


def save_checkpoint(config, path, seed=0):
    """Random weights, with the meta information that mmengine stores."""
    torch.manual_seed(seed)
    init_default_scope('mmdet')
    cfg = Config.fromfile(config)
    state = build(cfg.model).state_dict()
    for name, value in state.items():  # an f with slopes
        if 'fc_logdensity.weight' in name:
            value.normal_()
    torch.save(
        dict(
            state_dict=state,
            meta=dict(
                cfg=cfg.pretty_text,
                dataset_meta=dict(classes=cfg.metainfo.classes),
            ),
        ),
        path,
    )
    return path


@pytest.fixture(scope='session')
def energy_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('energy')
    config = shrunk_bccd(folder)
    return config, save_checkpoint(config, folder / 'energy.pth')


@pytest.fixture(scope='session')
def inferencer(energy_files):
    config, checkpoint = energy_files
    return EnergyDetInferencer(
        config, checkpoint, device='cpu', show_progress=False
    )


def picture(height=48, width=64, seed=0):
    """A smooth random image (H, W, 3), uint8."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def write(path, image=None, **shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture(**shape) if image is None else image)
    return path
