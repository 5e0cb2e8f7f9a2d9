"""Small models and data that several test files share, quick on a CPU."""

import copy
import functools
import logging
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'

# ------------------------------------------------------- configs of detectors

# One detector of each kind, by its config in mmdet.
FAMILIES = {
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Cascade R-CNN': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'atss/atss_r50_fpn_1x_coco.py',
    'GFL': 'gfl/gfl_r50_fpn_1x_coco.py',
    'Deformable DETR': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'DETR': 'detr/detr_r50_8xb2-150e_coco.py',
}


def shrink(model_cfg, channels=8):
    """The model config of a detector, as shipped, with hardly any weights."""
    cfg = copy.deepcopy(model_cfg)
    if 'energy_model' in cfg:
        cfg.detector = shrink(cfg.detector, channels)
        _shrink_energy_model(cfg.energy_model)
        return cfg
    if cfg.type == 'YOLOX':  # nano is small enough
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


def _shrink_transformer(cfg):
    cfg.num_queries = 10
    cfg.test_cfg = dict(max_per_img=10)
    for part in (cfg.encoder, cfg.decoder):
        part.num_layers = 1
        part.layer_cfg.ffn_cfg.feedforward_channels = 16
    if 'dn_cfg' in cfg:
        cfg.dn_cfg.group_cfg.num_dn_queries = 4


def _shrink_energy_model(cfg):
    cfg.setdefault('density', None)  # f alone; the prior has its own tests
    cfg.setdefault('head', {}).update(fc_out_channels=16)
    if 'num_samples' in cfg.loss:
        cfg.loss.num_samples = 8
    if cfg.loss.get('sigmas') == 'measured':  # there is nothing to measure
        cfg.loss.sigmas = (0.05, 0.1)


def num_classes(model_cfg):
    """Classes of a detector's config."""
    cfg = model_cfg.get('detector', model_cfg)
    head = cfg.get('roi_head', cfg).bbox_head
    return (head[-1] if isinstance(head, list) else head).num_classes


@functools.cache
def _bccd_cfg(name):
    return shrink(Config.fromfile(CONFIGS / f'bccd/{name}_bccd.py').model)


def bccd_cfg():
    """The shrunk BCCD Faster R-CNN, without an energy model."""
    return copy.deepcopy(_bccd_cfg('faster-rcnn_r18-half'))


def energy_model_cfg(**changes):
    """The same with an energy model; changes to its ``EnergyDetector``."""
    cfg = copy.deepcopy(_bccd_cfg('faster-rcnn_r18-half_nce-plus'))
    cfg.update(changes)
    return cfg


@functools.cache
def mmdet_model_cfg(path):
    """The model of a config that mmdet ships; not to be changed."""
    from mmengine.hub import get_config

    return get_config(f'mmdet::{path}').model


def plain_cfg(family):
    """The shrunk detector of a family, without an energy model."""
    return shrink(mmdet_model_cfg(FAMILIES[family]))


# ----------------------------------------------------------- built detectors


def build(model_cfg):
    """A model with random but not degenerate weights."""
    from mmdet.registry import MODELS

    logging.disable(logging.CRITICAL)
    try:
        model = MODELS.build(copy.deepcopy(model_cfg))
        model.init_weights()
        if getattr(model, 'freeze_detector', False):
            model.detector.init_weights()  # which a checkpoint would bring
    finally:
        logging.disable(logging.NOTSET)
    return model


def wrapped(detector, energy_model=None, **changes):
    """An ``EnergyDetector`` around a config, with slopes to climb.

    ``energy_model`` changes the energy model's config, the others those of
    the ``EnergyDetector``.
    """
    small = dict(
        head=dict(fc_out_channels=16),
        loss=dict(type='NCEPlusLoss', num_samples=8),
        ascent=dict(num_steps=3),
        density=None,  # f alone; the prior has its own tests
    )
    model = build(
        ConfigDict(
            type='EnergyDetector',
            detector=detector,
            energy_model={**small, **(energy_model or {})},
            **changes,
        )
    )
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    return model


def detect_everything(model):
    """Let detections of any score pass."""
    for module in model.modules():
        test_cfg = getattr(module, 'test_cfg', None)
        if isinstance(test_cfg, dict) and 'score_thr' in test_cfg:
            test_cfg.score_thr = 0.0
    return model


def predict(model, inputs, samples, rescale=True):
    """Data samples with predictions; the given ones stay as they are."""
    with torch.no_grad():
        return model.eval().predict(inputs, copy.deepcopy(samples), rescale)


def results(model, inputs, samples, rescale=True):
    """The predicted instances of each image."""
    found = predict(model, inputs, samples, rescale)
    return [sample.pred_instances for sample in found]


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


# ------------------------------------------------- the energy model by itself

STRIDES = (4, 8, 16, 32)
SIZES = [(96, 96), (80, 64)]
METHODS = (
    'NCEPlusLoss',
    'NCELoss',
    'MLISLoss',
    'KLDISLoss',
    'MLMCMCLoss',
    'SMLoss',
    'DSMLoss',
    'LocalizationConfidenceLoss',
)


def head_cfg(**changes):
    """A smooth head for maps of four channels and three classes."""
    return {
        **dict(
            type='EnergyHead',
            num_classes=3,
            in_channels=4,
            fc_out_channels=16,
            act_cfg=dict(type='SiLU'),
        ),
        **changes,
    }


def energy_model(**changes):
    """An ``EnergyModel`` with slopes to climb."""
    from mmdet_ebm.models import EnergyModel

    options = dict(
        head=head_cfg(),
        loss=dict(type='NCEPlusLoss', num_samples=8),
        featmap_strides=STRIDES,
        density=None,
    )
    model = EnergyModel(**{**options, **changes})
    model.init_weights()
    torch.nn.init.normal_(model.head.fc_logdensity.weight)
    return model.eval()


def feature_maps(seed=0, images=2):
    """Maps of padded images of 96 x 96 pixels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, 4, 96 // s, 96 // s, generator=generator)
        for s in STRIDES
    ]


def boxes(dtype=torch.float32):
    """Five boxes in two images of ``SIZES``.

    In double precision they lie away from the borders of cells, where f is
    smooth.
    """
    from mmdet_ebm.ops import Boxes

    first = torch.tensor([[10.0, 12, 40, 50], [60.0, 60, 95, 95]])
    second = torch.tensor(
        [[5.0, 5, 30, 28], [20.0, 30, 60, 75], [1.0, 40, 20, 44]]
    )
    shift = 0.123 if dtype == torch.float64 else 0
    return Boxes.from_images(
        [first.to(dtype) + shift, second.to(dtype) + shift],
        [torch.tensor([0, 2]), torch.tensor([1, 1, 0])],
    )


def no_boxes(images=2):
    """The boxes of images without any."""
    from mmdet_ebm.ops import Boxes

    return Boxes.from_images(
        [torch.zeros(0, 4)] * images, [torch.zeros(0).long()] * images
    )


def by_image(table):
    """Corners and labels of each image, as a detector knows its truth."""
    return map(list, zip(*table.split(table.corners, table.labels)))
