"""A small Faster R-CNN with an energy model."""

import pytest
import torch

from ..small_models import build, energy_model_cfg


@pytest.fixture
def detector():
    """Random weights, made to detect something and to have slopes."""
    model = build(energy_model_cfg())
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    roi_head = model.detector.roi_head
    torch.nn.init.normal_(roi_head.bbox_head.fc_cls.weight, std=0.2)
    roi_head.test_cfg.score_thr = 0.2
    return model
