"""Data and a detector for the studies."""

import pytest
import torch
from mmengine.config import Config

from mmdet_ebm.datasets import DigitsConfig, generate_digits

from ..small_models import CONFIGS, ROOT, build


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Digits with exact boxes, and noisy ones for training."""
    config = DigitsConfig(
        num_images=dict(train=8, val=4, test=4), annotation_noise=(0.1,)
    )
    return generate_digits(tmp_path_factory.mktemp('digits'), config)


@pytest.fixture(scope='session')
def plain(tmp_path_factory):
    """A detector that was not trained: it detects much, and badly."""
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / 'digits/faster-rcnn_r18-half_digits.py')
    path = tmp_path_factory.mktemp('plain') / 'plain.pth'
    torch.save(dict(state_dict=build(cfg.model).state_dict()), path)
    return path
