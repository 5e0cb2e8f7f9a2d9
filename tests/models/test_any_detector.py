"""The wrapper: every family of detectors trains, predicts and infers."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config

from mmdet_ebm.models import EnergyDetector, Refinement

from ..conftest import (
    batch,
    build,
    detect_everything,
    energy_model_cfg,
    shrink,
)

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
QUERY_BASED = ('Deformable DETR', 'DINO', 'DETR')
STRIDES = {
    **dict.fromkeys(FAMILIES, (8, 16, 32)),
    **dict.fromkeys(
        ['Faster R-CNN', 'Cascade R-CNN', 'Mask R-CNN'], (4, 8, 16, 32)
    ),
    'DETR': (32,),
}
REFINER = dict(
    type='EnergyRefiner',
    head=dict(fc_out_channels=16),
    loss=dict(type='NCEPlusLoss', num_samples=8),
    num_steps=3,
)


def plain_cfg(family):
    return shrink(get_config(f'mmdet::{FAMILIES[family]}').model)


def wrapped(detector, **changes):
    """The wrapper around a detector's config, with slopes to climb."""
    model = build(
        ConfigDict(
            type='EnergyDetector',
            detector=detector,
            refiner=copy.deepcopy(REFINER),
            **changes,
        )
    )
    torch.nn.init.normal_(model.refiner.head.fc_logdensity.weight)
    return model


def results(model, inputs, samples, rescale=True):
    with torch.no_grad():
        out = model.eval().predict(inputs, copy.deepcopy(samples), rescale)
    return [sample.pred_instances for sample in out]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def pair(family):
    """The plain detector, and the wrapper that loaded its checkpoint."""
    cfg = plain_cfg(family)
    plain = detect_everything(build(cfg))
    model = detect_everything(wrapped(cfg))
    missing, unexpected = model.load_state_dict(
        plain.state_dict(), strict=False
    )
    assert not unexpected
    assert missing and all(key.startswith('refiner.') for key in missing)
    return plain, model


def assert_equal(ours, theirs, **tolerance):
    assert set(ours.keys()) == set(theirs.keys())
    for key in theirs.keys():
        np.testing.assert_allclose(
            ours[key], theirs[key], err_msg=key, **tolerance
        )


def test_family(family, pair):
    plain, model = pair
    inputs, samples = batch(num_classes=80)
    assert model.refiner.head.num_classes == 80
    assert model.refiner.roi_extractor.featmap_strides == STRIDES[family]
    assert model.orders_by_energy == (family not in QUERY_BASED)

    # A training step moves the energy model and nothing else.
    model.train()
    assert not model.detector.training and model.refiner.training
    loss, _ = model.parse_losses(model.loss(inputs, copy.deepcopy(samples)))
    loss.backward()
    assert loss > 0
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith('refiner.')

    # Without stages it is the plain detector, exactly. One of its own, whose
    # weights lie elsewhere in memory, may round attention otherwise.
    theirs = results(plain, inputs, samples)
    assert all(len(r) > 0 for r in theirs)
    stages = model.refinement
    model.refinement = Refinement(energy_nms=False, ascent=False)
    rounding = (
        dict(atol=1e-3, rtol=1e-5)
        if family in QUERY_BASED
        else dict(atol=0, rtol=0)
    )
    for our, inner, their in zip(
        results(model, inputs, samples),
        results(model.detector, inputs, samples),
        theirs,
        strict=True,
    ):
        assert_equal(our, inner, atol=0, rtol=0)
        assert_equal(our, their, **rounding)

    # The ascent starts where the plain detector ends, in the same frame.
    model.refinement = Refinement(energy_nms=False, ascent=True)
    for our, their in zip(
        results(model, inputs, samples), theirs, strict=True
    ):
        torch.testing.assert_close(our.initial_bboxes, their.bboxes)
        torch.testing.assert_close(our.scores, their.scores)
        assert not torch.allclose(our.bboxes, their.bboxes)
        assert ('masks' in our) == (family == 'Mask R-CNN')

    # As configured, in both frames; what it finds by itself goes with it.
    model.refinement = dataclasses.replace(
        stages, uncertainty=True, uncertainty_per_img=2, keep_plain=True
    )
    for small, large, their in zip(
        results(model, inputs, samples, False),
        results(model, inputs, samples),
        theirs,
        strict=True,
    ):
        for name in ('bboxes', 'initial_bboxes', 'box_std'):
            torch.testing.assert_close(
                small[name] * 2, large[name], equal_nan=True
            )
        assert len(large.logdensities) == len(large) > 0
        assert large.box_std.isfinite().all(1).sum() <= 2
        for name in ('bboxes', 'scores', 'labels'):
            torch.testing.assert_close(
                large.plain_instances[name], their[name], atol=1e-3, rtol=1e-5
            )


def test_inference_call(pair):
    _, model = pair
    model.cfg = Config(
        dict(
            test_dataloader=dict(
                dataset=dict(
                    pipeline=[
                        dict(type='mmdet.LoadImageFromNDArray'),
                        dict(
                            type='mmdet.Resize',
                            scale=(96, 96),
                            keep_ratio=True,
                        ),
                        dict(
                            type='mmdet.PackDetInputs',
                            meta_keys=(
                                'ori_shape',
                                'img_shape',
                                'scale_factor',
                            ),
                        ),
                    ]
                )
            )
        )
    )
    image = np.random.default_rng(0).integers(
        0, 255, (64, 48, 3), dtype=np.uint8
    )
    sample = inference_detector(model.eval(), image)
    found = sample.pred_instances
    assert len(found) > 0 and 'logdensities' in found
    assert (found.bboxes[:, 2] <= 48).all() and (found.bboxes >= 0).all()


@pytest.mark.parametrize('family', ['RetinaNet', 'Cascade R-CNN'])
def test_energy_nms_keeps_the_detectors_candidates(family):
    """All of them if nothing overlaps by more than the threshold."""
    cfg = plain_cfg(family)
    if family == 'RetinaNet':
        cfg.test_cfg.nms_pre = 20
    else:
        cfg.test_cfg.rpn.max_per_img = 20
    model = detect_everything(wrapped(cfg))
    inputs, samples = batch()
    model.refinement = Refinement(energy_nms=True, ascent=False, nms_pre=-1)
    model._adapter.test_cfg.update(
        nms=dict(type='nms', iou_threshold=1.0), max_per_img=-1, score_thr=0.0
    )
    with torch.no_grad():
        candidates = model.eval()._adapter.candidates(inputs, samples)
    for ours, theirs in zip(
        results(model, inputs, samples, False), candidates, strict=True
    ):
        assert len(ours) == len(theirs)
        order = theirs.scores.argsort(descending=True, stable=True)
        assert torch.equal(ours.scores, theirs.scores[order])


@pytest.mark.parametrize('family', ['Mask R-CNN'])
def test_masks_are_predicted_on_the_refined_boxes(pair):
    _, model = pair
    model.detector.roi_head.test_cfg.max_per_img = 5
    inputs, samples = batch()
    seen = []
    forward = model.detector.roi_head._mask_forward
    model.detector.roi_head._mask_forward = lambda x, rois: (
        seen.append(rois) or forward(x, rois)
    )
    found = results(model, inputs, samples)
    torch.testing.assert_close(
        seen[0][:, 1:] * 2, torch.cat([f.bboxes for f in found])
    )
    for result, sample in zip(found, samples, strict=True):
        assert result.masks.shape == (len(result), *sample.ori_shape)


@pytest.mark.parametrize('family', ['ATSS', 'DINO'])
def test_an_image_does_not_feel_its_batch(family):
    """As far as the detector itself does not: its boxes are given here."""
    model = detect_everything(wrapped(plain_cfg(family)))
    model.refinement = Refinement(energy_nms=False)
    inputs, samples = batch(sizes=((96, 96), (96, 96)))
    both = results(model, inputs, samples)
    alone = results(model, inputs[1:], samples[1:])
    torch.testing.assert_close(
        both[1].initial_bboxes, alone[0].initial_bboxes, rtol=1e-3, atol=1e-2
    )
    torch.testing.assert_close(
        both[1].bboxes, alone[0].bboxes, rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize('family', ['FCOS', 'Deformable DETR'])
def test_joint_training_adds_both_losses(family):
    model = wrapped(plain_cfg(family), freeze_detector=False).train()
    assert model.detector.training
    losses = model.loss(*batch(num_classes=80))
    assert {'loss_energy', 'loss_cls', 'loss_bbox'} <= set(losses)
    losses['loss_energy'].backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in model.detector.neck.parameters()
    )


@pytest.mark.parametrize('family', ['Deformable DETR', 'DETR'])
def test_maps_of_the_encoder(family):
    """One token for each cell, in the order of the neck's maps."""
    model = wrapped(plain_cfg(family), features='encoder').eval()
    inputs, samples = batch()
    with torch.no_grad():
        maps = model._tap.run(inputs, samples)
        x = model.detector.extract_feat(inputs)
        memory = model.detector.forward_encoder(
            **model.detector.pre_transformer(x, samples)[0]
        )['memory']
    assert [m.shape for m in maps] == [m.shape for m in x]
    height, width = x[0].shape[-2:]
    assert torch.equal(maps[0][1, :, 1, 2], memory[1, width + 2])
    loss = model.train().loss(inputs, samples)['loss_energy']
    loss.backward()
    assert loss > 0
    assert all('initial_bboxes' in r for r in results(model, inputs, samples))


def test_maps_of_an_encoder_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match='no encoder'):
        wrapped(plain_cfg('ATSS'), features='encoder')
    with pytest.raises(ValueError, match="'necks'"):
        wrapped(plain_cfg('ATSS'), features='necks')


@pytest.mark.parametrize('family', ['ATSS', 'DINO', 'Mask R-CNN'])
def test_no_detections_and_no_objects(family):
    model = wrapped(plain_cfg(family))
    inputs, samples = batch(num_objects=(0, 0))
    loss = model.train().loss(inputs, copy.deepcopy(samples))['loss_energy']
    loss.backward()
    assert loss == 0
    if family == 'DINO':  # it always gives as many boxes as it has queries
        return
    model._adapter.test_cfg.score_thr = 1.1
    for result in results(model, inputs, samples):
        assert result.bboxes.shape == (0, 4) and len(result.scores) == 0


@pytest.mark.parametrize('family', ['FCOS', 'DINO'])
def test_one_class_and_one_energy_for_all(family):
    cfg = plain_cfg(family)
    cfg.bbox_head.num_classes = 1
    model = detect_everything(wrapped(cfg))
    assert model.refiner.head.fc_logdensity.out_features == 1
    inputs, samples = batch(num_classes=1)
    assert all(len(r) > 0 for r in results(model, inputs, samples))

    refiner = copy.deepcopy(REFINER)
    refiner['head']['class_agnostic'] = True
    model = build(
        ConfigDict(
            type='EnergyDetector', refiner=refiner, detector=plain_cfg(family)
        )
    )
    assert model.refiner.head.fc_logdensity.out_features == 1
    assert model.train().loss(*batch(num_classes=80))['loss_energy'] > 0


def test_keys_with_the_prefix_load_too(tmp_path):
    from mmengine.runner import load_checkpoint

    cfg = plain_cfg('GFL')
    plain, model, again = build(cfg), wrapped(cfg), wrapped(cfg)
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'energy.pth')
    # mmengine walks through modules in its own way.
    load_checkpoint(model, str(tmp_path / 'plain.pth'))
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[f'detector.{key}'], value)
    again.load_state_dict(model.state_dict(), strict=True)
    inner = torch.nn.ModuleDict(dict(module=again))
    inner.load_state_dict(
        {f'module.{k}': v for k, v in plain.state_dict().items()}, strict=False
    )
    assert torch.equal(
        again.detector.backbone.conv1.weight, plain.backbone.conv1.weight
    )


def test_it_is_the_same_energy_model_as_in_the_roi_head():
    """A checkpoint of one gives the same results in the other."""
    cfg = energy_model_cfg()
    inside = detect_everything(build(cfg))
    torch.nn.init.normal_(inside.refiner.head.fc_logdensity.weight)
    refiner = cfg.roi_head.pop('refiner')
    cfg.roi_head.pop('refinement')
    cfg.update(type='FasterRCNN')
    cfg.roi_head.type = 'StandardRoIHead'
    cfg.pop('freeze_detector')
    around = detect_everything(
        build(ConfigDict(type='EnergyDetector', detector=cfg, refiner=refiner))
    )
    around.load_state_dict(inside.state_dict(), strict=True)
    inputs, samples = batch()
    for ours, theirs in zip(
        results(around, inputs, samples),
        results(inside, inputs, samples),
        strict=True,
    ):
        assert_equal(ours, theirs, atol=0, rtol=0)
    torch.manual_seed(0)
    ours = around.train().loss(inputs, copy.deepcopy(samples))
    torch.manual_seed(0)
    theirs = inside.train().loss(inputs, samples)
    assert torch.equal(ours['loss_energy'], theirs['loss_energy'])


@pytest.mark.parametrize('family', ['ATSS', 'Mask R-CNN'])
def test_plain_results_and_uncertainties_come_along(family, pair):
    plain, model = pair
    model._adapter.test_cfg.max_per_img = 5
    plain.test_cfg.get('rcnn', plain.test_cfg).max_per_img = 5
    inputs, samples = batch()
    model.refinement = Refinement(uncertainty=True, keep_plain=True)
    for ours, small, theirs in zip(
        results(model, inputs, samples),
        results(model, inputs, samples, False),
        results(plain, inputs, samples),
        strict=True,
    ):
        torch.testing.assert_close(ours.plain_instances.bboxes, theirs.bboxes)
        assert torch.equal(ours.plain_instances.scores, theirs.scores)
        assert ours.box_std.shape == (len(ours), 4)
        assert ours.box_logprobs.shape == (len(ours),)
        # Samples differ from call to call.
        ratio = ours.box_std.nanmedian() / small.box_std.nanmedian()
        assert 1.2 < ratio < 3.3


def test_a_copy_is_a_model_of_its_own():
    """As for moving averages of weights."""
    model = detect_everything(wrapped(plain_cfg('RetinaNet')))
    inputs, samples = batch()
    before = results(model, inputs, samples)
    other = copy.deepcopy(model)
    assert other._adapter.detector is other.detector
    for ours, theirs in zip(
        results(other, inputs, samples), before, strict=True
    ):
        assert_equal(ours, theirs, atol=0, rtol=0)
    torch.nn.init.zeros_(other.detector.bbox_head.retina_reg.weight)
    torch.nn.init.zeros_(other.detector.neck.fpn_convs[0].conv.weight)
    assert not torch.allclose(
        results(other, inputs, samples)[0].bboxes, before[0].bboxes
    )
    for ours, theirs in zip(
        results(model, inputs, samples), before, strict=True
    ):
        assert_equal(ours, theirs, atol=0, rtol=0)


def test_tensor_mode_gives_the_detectors_outputs():
    model = wrapped(plain_cfg('FCOS')).eval()
    inputs, _ = batch()
    with torch.no_grad():
        ours = model(inputs, mode='tensor')
        theirs = model.detector(inputs, mode='tensor')
    assert torch.equal(ours[0][0], theirs[0][0])


def test_the_data_preprocessor_is_the_detectors():
    cfg = plain_cfg('FCOS')
    model = wrapped(cfg)
    assert model.data_preprocessor is model.detector.data_preprocessor
    other = dict(type='DetDataPreprocessor', pad_size_divisor=16)
    assert (
        wrapped(
            cfg, data_preprocessor=other
        ).data_preprocessor.pad_size_divisor
        == 16
    )


def test_registered():
    assert MODELS.get('EnergyDetector') is EnergyDetector
