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


def shown(levels):
    return [(x.stride, x.channels, x.index, x.stage) for x in levels]


def bare(cfg):
    """A detector of a config that names weights to download."""
    cfg = copy.deepcopy(cfg)
    cfg.backbone.init_cfg = None
    return build(cfg).eval()


NECK_64 = [(8 << i, 64, i, None) for i in range(5)]


@pytest.mark.parametrize(
    'family, expected',
    [
        ('RetinaNet', [(4, 4, 0, 'layer1'), *NECK_64]),
        ('Faster R-CNN', [(4 << i, 8, i, None) for i in range(5)]),
        (
            'DETR',
            [
                (4, 4, 0, 'layer1'),
                (8, 8, 0, 'layer2'),
                (16, 16, 0, 'layer3'),
                (32, 256, 0, None),
            ],
        ),
    ],
)
def test_levels_are_measured(family, expected):
    """Those of the neck; in front of them stages that are finer."""
    cfg = plain_cfg(family)
    cfg.backbone.norm_eval = False
    detector = build(cfg).train()
    before = copy.deepcopy(detector.state_dict())
    assert shown(FeatureRecorder(detector).measure()) == expected
    # The mode and the statistics of normalisations stay.
    assert detector.training
    assert not any(m._forward_hooks for m in detector.modules())
    after = detector.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# Backbones that give no map of stride 4 by themselves, and those that do.
BACKBONES = {
    'MobileNetV2': (dict(out_indices=(2, 4, 6)), (24, 32, 96, 320), 'layer2'),
    'SwinTransformer': (
        dict(embed_dims=8, depths=(1,) * 4, num_heads=(1,) * 4)
        | dict(out_indices=(1, 2, 3)),
        (8, 16, 32, 64),
        'stages.0',
    ),
    'PyramidVisionTransformer': (
        dict(embed_dims=8, num_layers=[1] * 4, out_indices=(1, 2, 3)),
        (8, 16, 40, 64),
        'layers.0.0',  # its blocks give tokens without their height and width
    ),
    'CSPDarknet': (dict(widen_factor=0.125), (16, 32, 64, 128), 'stage1'),
}


@pytest.mark.parametrize('kind', BACKBONES)
def test_backbones_of_every_kind_have_a_stage_of_stride_4(kind):
    options, channels, stage = BACKBONES[kind]
    cfg = plain_cfg('RetinaNet')
    cfg.backbone = dict(type=kind, **options)
    cfg.neck.update(in_channels=list(channels[1:]), num_outs=3, start_level=0)
    detector = bare(cfg)
    recorder = FeatureRecorder(detector)
    levels = recorder.measure()
    assert [level.stride for level in levels] == [4, 8, 16, 32]
    first = levels[0]
    assert first.channels == channels[0] and first.stage.startswith(stage)
    recorder.levels = levels[:2]
    with torch.no_grad():
        maps = recorder.run(torch.randn(2, 3, 64, 96), [])
    assert [m.shape for m in maps] == [
        (2, channels[0], 16, 24),
        (2, 64, 8, 12),
    ]


def test_recorded_levels_are_what_the_stages_give():
    detector = detector_of('RetinaNet')
    recorder = FeatureRecorder(detector)
    recorder.levels = recorder.measure()[:2]
    inputs, samples = batch()
    with torch.no_grad():
        maps = recorder.run(inputs, samples)
        x = detector.backbone.maxpool(
            detector.backbone.norm1(detector.backbone.conv1(inputs)).relu()
        )
        expected = [
            detector.backbone.layer1(x),
            detector.extract_feat(inputs)[0],
        ]
    assert all(map(torch.equal, maps, expected))


def test_unequal_channels_and_falling_strides_are_measured():
    yolo = mmdet_model_cfg('yolo/yolov3_d53_8xb8-320-273e_coco.py')
    assert shown(FeatureRecorder(bare(yolo)).measure()) == [
        (4, 128, 0, 'conv_res_block2'),
        (8, 128, 2, None),
        (16, 256, 1, None),
        (32, 512, 0, None),
    ]
    # Whose last layers refuse an image of 256 pixels.
    ssd = mmdet_model_cfg('ssd/ssd300_coco.py')
    assert shown(FeatureRecorder(bare(ssd)).measure())[:4] == [
        (4, 256, 0, 'features.15'),
        (8, 512, 0, None),
        (16, 1024, 1, None),
        (32, 512, 2, None),
    ]


class Whole(torch.nn.Module):
    """A backbone whose only part gives the detector's maps."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return self.net(inputs)


def test_without_a_finer_stage_the_necks_maps_are_all():
    cfg = plain_cfg('RetinaNet')
    cfg.backbone.out_indices = (1, 2, 3)
    cfg.neck.update(in_channels=[8, 16, 32], start_level=0)
    detector = build(cfg)
    detector.backbone = Whole(detector.backbone)
    assert shown(FeatureRecorder(detector).measure()) == NECK_64


def test_an_image_of_one_colour_is_measured_so():
    cfg = plain_cfg('RetinaNet')
    cfg.backbone.in_channels = 1
    cfg.data_preprocessor.update(mean=[0.5], std=[1.0], bgr_to_rgb=False)
    assert shown(FeatureRecorder(build(cfg)).measure())[1:] == NECK_64


def test_levels_of_unequal_channels_are_refused_without_a_neck():
    cfg = copy.deepcopy(
        mmdet_model_cfg('yolo/yolov3_d53_8xb8-320-273e_coco.py')
    )
    cfg.backbone.init_cfg = None
    with pytest.raises(ValueError, match='equal channels.*EnergyNeck'):
        wrapped(cfg)


def test_levels_that_cannot_be_measured_are_to_be_set():
    detector = detector_of('RetinaNet')

    def refuse(*_):
        raise RuntimeError('only 300 pixels')

    detector.extract_feat = refuse
    with pytest.raises(ValueError, match='300 pixels.*featmap_strides'):
        FeatureRecorder(detector).measure()


def test_levels_can_be_set_by_hand():
    head = dict(fc_out_channels=16, in_channels=64, roi_feat_size=3)
    cfg = ConfigDict(head=head, featmap_strides=(8,))
    model = wrapped(plain_cfg('RetinaNet'), cfg)
    assert model.energy_model.featmap_strides == (8,)
    assert model.energy_model.head.in_shape == (64, 3, 3)
    assert model.train().loss(*batch(num_classes=80))['loss_energy'] > 0
