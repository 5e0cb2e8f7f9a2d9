"""The wrapper: what it refuses, and settings for what it cannot find."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hub import get_config

from mmdet_ebm.models import Refinement

from ..conftest import batch, build
from .test_any_detector import REFINER, plain_cfg, results, wrapped


def test_ordering_a_detector_without_nms_is_refused():
    with pytest.raises(ValueError, match='nothing to order by energy'):
        wrapped(plain_cfg('DINO'), refinement=dict(energy_nms=True))
    model = wrapped(plain_cfg('DINO'))
    model.refinement = Refinement(energy_nms=True)
    with pytest.raises(ValueError, match='nothing to order by energy'):
        results(model, *batch())


def test_another_nms_leaves_the_ascent():
    cfg = plain_cfg('RetinaNet')
    cfg.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    model = wrapped(cfg)
    assert model.refinement == Refinement(energy_nms=False, ascent=True)


def test_a_dense_head_without_a_limit_of_boxes():
    yolox = get_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py').model
    yolox.backbone.init_cfg = None
    model = wrapped(yolox)
    model._adapter.test_cfg.score_thr = 0.9  # hardly any box survives
    assert 'max_per_img' not in model._adapter.test_cfg
    assert model.orders_by_energy
    assert len(results(model, *batch())) == 2


def test_masks_that_do_not_come_from_boxes_are_refused():
    rtmdet = get_config(
        'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py'
    ).model
    rtmdet.backbone.init_cfg = None
    model = wrapped(rtmdet)
    assert not model.orders_by_energy
    with pytest.raises(ValueError, match='masks'):
        results(model, *batch())


def test_detectors_without_boxes_are_refused():
    solo = get_config('mmdet::solo/solo_r50_fpn_1x_coco.py').model
    solo.backbone.init_cfg = None
    with pytest.raises(ValueError, match='box head'):
        wrapped(solo)


def test_rotated_boxes_are_refused():
    model = wrapped(plain_cfg('RetinaNet'))
    inputs, samples = batch()
    for sample in samples:
        boxes = sample.gt_instances.bboxes
        del sample.gt_instances.bboxes
        sample.gt_instances.bboxes = torch.cat([boxes, boxes[:, :1]], 1)
    with pytest.raises(ValueError, match='rotated'):
        model.train().loss(inputs, samples)


def test_levels_of_unequal_channels_are_refused():
    yolo = get_config('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py').model
    yolo.backbone.init_cfg = None
    with pytest.raises(ValueError, match='equal channels'):
        wrapped(yolo)


def test_levels_that_cannot_be_measured_are_to_be_set():
    ssd = get_config('mmdet::ssd/ssd300_coco.py').model  # not for 256 pixels
    ssd.backbone.init_cfg = None
    with pytest.raises(ValueError, match='featmap_strides'):
        wrapped(ssd)


def test_levels_can_be_set_by_hand():
    refiner = dict(
        copy.deepcopy(REFINER),
        roi_extractor=dict(
            featmap_strides=(8,), out_channels=64, output_size=3
        ),
    )
    model = build(
        ConfigDict(
            type='EnergyDetector',
            refiner=refiner,
            detector=plain_cfg('RetinaNet'),
        )
    )
    assert model.refiner.roi_extractor.featmap_strides == (8,)
    assert model.train().loss(*batch(num_classes=80))['loss_energy'] > 0
