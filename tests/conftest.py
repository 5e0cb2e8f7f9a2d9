"""Shared fixtures: small models and data, quick on a CPU."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    init_default_scope('mmdet')


def shrink(model_cfg, channels=8):
    """A shipped R-CNN's model config with hardly any weights."""
    cfg = copy.deepcopy(model_cfg)
    cfg.backbone.update(depth=18, base_channels=4, init_cfg=None)
    cfg.neck.update(in_channels=[4, 8, 16, 32], out_channels=channels)
    cfg.rpn_head.update(in_channels=channels, feat_channels=channels)
    cfg.roi_head.bbox_roi_extractor.out_channels = channels
    cfg.roi_head.bbox_head.update(in_channels=channels, fc_out_channels=16)
    if 'mask_head' in cfg.roi_head:
        cfg.roi_head.mask_roi_extractor.out_channels = channels
        cfg.roi_head.mask_head.update(in_channels=channels,
                                      conv_out_channels=channels)
    if 'refiner' in cfg.roi_head:
        refiner = cfg.roi_head.refiner
        refiner.setdefault('head', {}).update(fc_out_channels=16)
        if 'num_samples' in refiner.loss:
            refiner.loss.num_samples = 8
    return cfg


def energy_model_cfg(**roi_head):
    """The shrunk BCCD energy config, with changes to the RoI head."""
    path = CONFIGS / 'bccd/faster-rcnn_r18-half_nce-plus_bccd.py'
    cfg = shrink(Config.fromfile(path).model)
    cfg.roi_head.update(roi_head)
    return cfg


def build(model_cfg):
    """A model with random but not degenerate weights."""
    from mmdet.registry import MODELS

    import mmdet_ebm.models  # noqa: F401
    logging.disable(logging.CRITICAL)
    try:
        model = MODELS.build(copy.deepcopy(model_cfg))
        model.init_weights()
    finally:
        logging.disable(logging.NOTSET)
    return model


def batch(num_objects=(3, 2), sizes=((64, 96), (96, 64)), num_classes=3):
    """Images (N, 3, H, W) of one padded batch and their data samples."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    samples = []
    for (height, width), count in zip(sizes, num_objects):
        corner = torch.rand(count, 2) * torch.tensor([width - 40, height - 40])
        boxes = torch.cat([corner, corner + 12 + 24 * torch.rand(count, 2)], 1)
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width), ori_shape=(2 * height, 2 * width),
                pad_shape=(96, 96), batch_input_shape=(96, 96),
                scale_factor=(0.5, 0.5), img_id=len(samples)))
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.randint(num_classes, (count, )))
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    return torch.randn(len(samples), 3, 96, 96), samples
