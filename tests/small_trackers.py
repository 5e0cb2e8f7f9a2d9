"""A small tracking energy model, and data of a generated video for it."""

import torch
from mmdet.registry import MODELS

import mmdet_ebm.models  # noqa: F401

TRACKER = dict(
    type='TargetConditionalEnergy',
    patch_size=64,
    context=2.5,
    data_preprocessor=dict(
        type='TrackDataPreprocessor', mean=[110.0] * 3, std=[60.0] * 3
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        norm_eval=True,
    ),
    energy_model=dict(
        type='TargetEnergyModel',
        in_channels=(8, 16),
        channels=16,
        featmap_strides=(4, 8),
        head=dict(fc_out_channels=32),
        loss=dict(type='NCEPlusLoss', num_samples=32, sigmas=(0.05, 0.2)),
    ),
)


def tracker_model():
    """It, with fresh weights."""
    torch.manual_seed(0)
    model = MODELS.build(TRACKER)
    model.init_weights()
    return model
