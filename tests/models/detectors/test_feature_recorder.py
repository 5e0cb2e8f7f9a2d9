"""Maps of the neck or the encoder, whatever computes them."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict

from mmdet_ebm.models.detectors.feature_recorder import FeatureRecorder

from ...small_models import (
    batch,
    build,
    mmdet_model_cfg,
    plain_cfg,
    results,
    wrapped,
)


def detector_of(family):
    return build(plain_cfg(family)).eval()


def test_maps_are_those_of_the_neck():
    detector = detector_of('RetinaNet')
    inputs, samples = batch()
    with torch.no_grad():
        expected = detector.extract_feat(inputs)
        recorder = FeatureRecorder(detector)
        maps = recorder.run(inputs, samples)
        with recorder.recording() as record:
            detector.predict(inputs, samples)
    for ours, during, theirs in zip(maps, record.maps, expected, strict=True):
        assert torch.equal(ours, theirs) and torch.equal(during, theirs)
    assert record.neck_maps is record.maps


def test_without_a_neck_they_are_the_backbones():
    detector = detector_of('RetinaNet')
    del detector.neck
    inputs, samples = batch()
    with torch.no_grad():
        maps = FeatureRecorder(detector).run(inputs, samples)
        expected = detector.backbone(inputs)
    assert [m.shape for m in maps] == [m.shape for m in expected]


def test_nothing_stays_behind_even_after_an_error():
    detector = detector_of('Deformable DETR')
    recorder = FeatureRecorder(detector, 'encoder')
    with pytest.raises(RuntimeError, match='stop'), recorder.recording():
        raise RuntimeError('stop')
    assert not any(m._forward_hooks for m in detector.modules())


@pytest.mark.parametrize('family', ['Deformable DETR', 'DINO', 'DETR'])
def test_maps_of_the_encoder(family):
    """One token for each cell, in the order of the neck's maps."""
    model = wrapped(plain_cfg(family), features='encoder').eval()
    detector = model.detector
    inputs, samples = batch()
    with torch.no_grad():
        maps = model.recorder.run(inputs, samples)
        x = detector.extract_feat(inputs)
        memory = detector.forward_encoder(
            **detector.pre_transformer(x, samples)[0]
        )['memory']
        with model.recorder.recording() as record:
            detector.predict(inputs, copy.deepcopy(samples))
    assert [m.shape for m in maps] == [m.shape for m in x]
    width = x[0].shape[-1]
    assert torch.equal(maps[0][1, :, 1, 2], memory[1, width + 2])
    for first, second in zip(maps, record.maps, strict=True):
        torch.testing.assert_close(first, second)
    loss = model.train().loss(inputs, samples)['loss_energy']
    loss.backward()
    assert loss > 0
    assert all('initial_bboxes' in r for r in results(model, inputs, samples))


def test_maps_that_are_not_there_are_refused():
    detector = detector_of('RetinaNet')
    with pytest.raises(ValueError, match='RetinaNet has no encoder'):
        FeatureRecorder(detector, 'encoder')
    with pytest.raises(ValueError, match="got 'necks'"):
        FeatureRecorder(detector, 'necks')


# ------------------------------------------------------------------ measuring


@pytest.mark.parametrize(
    'family, channels, strides',
    [
        ('RetinaNet', 64, (8, 16, 32, 64, 128)),
        ('Deformable DETR', 256, (8, 16, 32, 64)),
        ('DETR', 256, (32,)),
    ],
)
def test_channels_and_strides_are_measured(family, channels, strides):
    cfg = plain_cfg(family)
    cfg.backbone.norm_eval = False
    detector = build(cfg).train()
    before = copy.deepcopy(detector.state_dict())
    found = FeatureRecorder(detector).measure()
    assert found == dict(in_channels=channels, featmap_strides=strides)
    # The mode and the statistics of normalisations stay.
    assert detector.training
    after = detector.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_image_of_one_colour_is_measured_so():
    cfg = plain_cfg('RetinaNet')
    cfg.backbone.in_channels = 1
    cfg.data_preprocessor.update(mean=[0.5], std=[1.0], bgr_to_rgb=False)
    assert FeatureRecorder(build(cfg)).measure()['in_channels'] == 64


def test_levels_of_unequal_channels_are_refused():
    cfg = copy.deepcopy(
        mmdet_model_cfg('yolo/yolov3_d53_8xb8-320-273e_coco.py')
    )
    cfg.backbone.init_cfg = None
    with pytest.raises(ValueError, match='equal channels'):
        wrapped(cfg)


def test_levels_that_cannot_be_measured_are_to_be_set():
    cfg = copy.deepcopy(mmdet_model_cfg('ssd/ssd300_coco.py'))
    cfg.backbone.init_cfg = None
    with pytest.raises(ValueError, match='model.energy_model.featmap_strides'):
        wrapped(cfg)  # not for images of 256 pixels


def test_levels_can_be_set_by_hand():
    head = dict(fc_out_channels=16, in_channels=64, roi_feat_size=3)
    cfg = ConfigDict(head=head, featmap_strides=(8,))
    model = wrapped(plain_cfg('RetinaNet'), cfg)
    assert model.energy_model.featmap_strides == (8,)
    assert model.energy_model.head.in_shape == (64, 3, 3)
    assert model.train().loss(*batch(num_classes=80))['loss_energy'] > 0
