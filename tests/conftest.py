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


@pytest.fixture(scope='session', autouse=True)
def _quick_logs():
    """Describing the machine and formatting configs takes longer than small
    trainings do, and is for their logs."""
    patch = pytest.MonkeyPatch()
    patch.setattr('mmengine.runner.runner.collect_env', dict)
    patch.setattr(
        'mmengine.config.config.FormatCode', lambda text, **_: (text, False)
    )
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    init_default_scope('mmdet')


def shrink(model_cfg, channels=8):
    """The model config of a detector, as shipped, with hardly any weights."""
    cfg = copy.deepcopy(model_cfg)
    if cfg.type == 'EnergyDetector':
        cfg.detector = shrink(cfg.detector, channels)
        _shrink_refiner(cfg.refiner)
        return cfg
    cfg.backbone.update(depth=18, base_channels=4, init_cfg=None)
    widths = [4, 8, 16, 32]
    cfg.neck.in_channels = [widths[i] for i in cfg.backbone.out_indices]
    if 'roi_head' in cfg:
        _shrink_two_stage(cfg, channels)
    elif 'encoder' in cfg:
        _shrink_transformer(cfg)
    else:  # some dense heads normalise 32 groups of at least two numbers
        cfg.neck.out_channels = 64
        cfg.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1)
    return cfg


def _shrink_two_stage(cfg, channels):
    cfg.neck.out_channels = channels
    cfg.rpn_head.update(in_channels=channels, feat_channels=channels)
    head = cfg.roi_head
    head.bbox_roi_extractor.out_channels = channels
    stages = (
        head.bbox_head
        if isinstance(head.bbox_head, list)
        else [head.bbox_head]
    )
    for stage in stages:
        stage.update(in_channels=channels, fc_out_channels=16)
    if 'mask_head' in head:
        head.mask_roi_extractor.out_channels = channels
        head.mask_head.update(in_channels=channels, conv_out_channels=channels)
    if 'refiner' in head:
        _shrink_refiner(head.refiner)


def _shrink_transformer(cfg):
    cfg.num_queries = 10
    cfg.test_cfg = dict(max_per_img=10)
    for part in (cfg.encoder, cfg.decoder):
        part.num_layers = 1
        part.layer_cfg.ffn_cfg.feedforward_channels = 16
    if 'dn_cfg' in cfg:
        cfg.dn_cfg.group_cfg.num_dn_queries = 4


def _shrink_refiner(refiner):
    refiner.setdefault('head', {}).update(fc_out_channels=16)
    if 'num_samples' in refiner.loss:
        refiner.loss.num_samples = 8


def num_classes(model_cfg):
    """Classes of a detector's config."""
    cfg = model_cfg.get('detector', model_cfg)
    head = cfg.get('roi_head', cfg).bbox_head
    return (head[-1] if isinstance(head, list) else head).num_classes


def detect_everything(model):
    """Let detections of any score pass."""
    for module in model.modules():
        test_cfg = getattr(module, 'test_cfg', None)
        if isinstance(test_cfg, dict) and 'score_thr' in test_cfg:
            test_cfg.score_thr = 0.0
    return model


def energy_model_cfg(**roi_head):
    """The shrunk BCCD energy config, with changes to the RoI head."""
    path = CONFIGS / 'bccd/faster-rcnn_r18-half_nce-plus_bccd.py'
    cfg = shrink(Config.fromfile(path).model)
    cfg.roi_head.update(roi_head)
    return cfg


def build(model_cfg):
    """A model with random but not degenerate weights."""
    from mmdet.registry import MODELS

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
                img_shape=(height, width),
                ori_shape=(2 * height, 2 * width),
                pad_shape=(96, 96),
                batch_input_shape=(96, 96),
                scale_factor=(0.5, 0.5),
                img_id=len(samples),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.randint(num_classes, (count,))
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long()
        )
        samples.append(sample)
    return torch.randn(len(samples), 3, 96, 96), samples
