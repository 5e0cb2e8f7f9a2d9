"""Every family of detectors trains, predicts and infers with an energy model.

What concerns one detector is in ``test_energy_detector``.
"""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config

from mmdet_ebm.models import Refinement

from ...small_models import (
    FAMILIES,
    batch,
    build,
    detect_everything,
    plain_cfg,
    results,
    wrapped,
)

TWO_STAGE = ('Faster R-CNN', 'Cascade R-CNN', 'Mask R-CNN')
QUERY_BASED = ('Deformable DETR', 'DINO', 'DETR')
STRIDES = {
    **dict.fromkeys(FAMILIES, (8, 16, 32)),
    **dict.fromkeys(TWO_STAGE, (4, 8, 16, 32)),
    'DETR': (32,),
}


@functools.cache
def pair_of(family):
    """The plain detector, and the wrapper that loaded its checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cfg = plain_cfg(family)
        plain = detect_everything(build(cfg))
        model = detect_everything(wrapped(cfg))
    missing, unexpected = model.load_state_dict(
        plain.state_dict(), strict=False
    )
    assert not unexpected
    assert missing and all(key.startswith('energy_model.') for key in missing)
    return plain, model


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def plain(family):
    return copy.deepcopy(pair_of(family)[0])


@pytest.fixture
def model(family):
    return copy.deepcopy(pair_of(family)[1])


def assert_equal(ours, theirs, **tolerance):
    assert set(ours.keys()) == set(theirs.keys())
    for key in theirs.keys():
        np.testing.assert_allclose(
            ours[key], theirs[key], err_msg=key, **tolerance
        )


def test_settings_are_read_from_the_detector(family, model):
    assert model.energy_model.head.num_classes == 80
    assert model.energy_model.featmap_strides == STRIDES[family]
    assert model.box_source.can_be_ordered == (family not in QUERY_BASED)
    assert model.refinement.ascent


def test_a_step_trains_the_energy_model_and_nothing_else(model):
    before = copy.deepcopy(model.state_dict())
    model.train()
    assert not model.detector.training and model.energy_model.training
    loss, _ = model.parse_losses(model.loss(*batch(num_classes=80)))
    loss.backward()
    assert loss > 0
    for name, parameter in model.named_parameters():
        trained = name.startswith('energy_model.')
        assert (parameter.grad is not None) == trained
    torch.optim.SGD(model.energy_model.parameters(), lr=1.0).step()
    after = model.state_dict()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed and all(key.startswith('energy_model.') for key in changed)


def test_without_stages_it_is_the_plain_detector(family, plain, model):
    """Exactly. One of its own, whose weights lie elsewhere in memory, may
    round attention otherwise."""
    inputs, samples = batch()
    model.refinement = Refinement(energy_nms=False, ascent=False)
    rounding = (
        dict(atol=1e-3, rtol=1e-5)
        if family in QUERY_BASED
        else dict(atol=0, rtol=0)
    )
    for our, inner, their in zip(
        results(model, inputs, samples),
        results(model.detector, inputs, samples),
        results(plain, inputs, samples),
        strict=True,
    ):
        assert len(our) > 0
        assert_equal(our, inner, atol=0, rtol=0)
        assert_equal(our, their, **rounding)


def test_the_ascent_starts_where_the_plain_detector_ends(family, plain, model):
    inputs, samples = batch()
    # The best boxes of random weights may be too small to move.
    model.refinement = Refinement(energy_nms=False, ascent_per_img=-1)
    for our, their in zip(
        results(model, inputs, samples),
        results(plain, inputs, samples),
        strict=True,
    ):
        torch.testing.assert_close(our.initial_bboxes, their.bboxes)
        torch.testing.assert_close(our.scores, their.scores)
        assert not torch.equal(our.bboxes, our.initial_bboxes)
        assert ('masks' in our) == (family == 'Mask R-CNN')


def test_all_stages_in_both_frames(model):
    inputs, samples = batch()
    model.refinement = dataclasses.replace(
        model.refinement, uncertainty=True, ascent_per_img=2
    )
    for small, large in zip(
        results(model, inputs, samples, False),
        results(model, inputs, samples),
        strict=True,
    ):
        assert len(large.logdensities) == len(large) > 0
        assert large.box_std.isfinite().all(1).sum() <= 2
        for name in ('bboxes', 'initial_bboxes', 'box_std'):
            torch.testing.assert_close(
                small[name] * 2, large[name], equal_nan=True
            )


def test_mmdets_own_inference(model):
    meta_keys = ('ori_shape', 'img_shape', 'scale_factor')
    pipeline = [
        dict(type='mmdet.LoadImageFromNDArray'),
        dict(type='mmdet.Resize', scale=(96, 96), keep_ratio=True),
        dict(type='mmdet.PackDetInputs', meta_keys=meta_keys),
    ]
    model.cfg = Config(
        dict(test_dataloader=dict(dataset=dict(pipeline=pipeline)))
    )
    image = np.random.default_rng(0).integers(
        0, 255, (64, 48, 3), dtype=np.uint8
    )
    found = inference_detector(model.eval(), image).pred_instances
    assert len(found) > 0 and 'logdensities' in found
    assert (found.bboxes[:, 2] <= 48).all() and (found.bboxes >= 0).all()


# -------------------------------------------------------------- some families


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
    model.box_source.test_cfg.update(
        nms=dict(type='nms', iou_threshold=1.0), max_per_img=-1
    )
    with torch.no_grad():
        candidates = model.eval().box_source.candidates(inputs, samples)
    for ours, theirs in zip(
        results(model, inputs, samples, False), candidates, strict=True
    ):
        assert len(ours) == len(theirs) > 0
        order = theirs.scores.argsort(descending=True, stable=True)
        assert torch.equal(ours.scores, theirs.scores[order])


@pytest.mark.parametrize('family', ['Mask R-CNN'])
@pytest.mark.parametrize('ascent', [True, False])
def test_masks_are_predicted_on_the_refined_boxes(family, model, ascent):
    head = model.detector.roi_head
    head.test_cfg.max_per_img = 5
    model.refinement = Refinement(ascent=ascent)
    inputs, samples = batch()
    seen, forward = [], head._mask_forward
    head._mask_forward = lambda x, rois: seen.append(rois) or forward(x, rois)
    found = results(model, inputs, samples)
    torch.testing.assert_close(
        seen[0][:, 1:] * 2, torch.cat([f.bboxes for f in found])
    )
    for result, sample in zip(found, samples, strict=True):
        assert result.masks.shape == (len(result), *sample.ori_shape)


@pytest.mark.parametrize('family', ['Mask R-CNN'])
@pytest.mark.parametrize('rescale', [True, False])
def test_boxes_that_do_not_move_keep_their_masks(
    family, plain, model, rescale
):
    model.refinement = Refinement(energy_nms=False)
    model.energy_model.ascent.num_steps = 0
    inputs, samples = batch()
    for ours, theirs in zip(
        results(model, inputs, samples, rescale),
        results(plain, inputs, samples, rescale),
    ):
        torch.testing.assert_close(ours.bboxes, theirs.bboxes)
        assert (ours.masks != theirs.masks).float().mean() < 1e-3


@pytest.mark.parametrize('family', ['Mask R-CNN'])
def test_masks_come_in_the_frame_of_the_boxes(family, model):
    model.detector.roi_head.test_cfg.max_per_img = 5
    inputs, samples = batch()
    for sample, small in zip(samples, results(model, inputs, samples, False)):
        assert small.masks.shape == (len(small), *sample.img_shape)


@pytest.mark.parametrize('family', ['ATSS', 'DINO'])
def test_an_image_does_not_feel_its_batch(family, model):
    """As far as the detector itself does not: its boxes are given here."""
    model.refinement = Refinement(energy_nms=False)
    inputs, samples = batch(sizes=((96, 96), (96, 96)))
    both = results(model, inputs, samples)
    alone = results(model, inputs[1:], samples[1:])
    for name in ('initial_bboxes', 'bboxes'):
        # Boxes of nearly equal scores may change places.
        distance = (both[1][name][:, None] - alone[0][name]).abs().amax(2)
        assert distance.shape[0] == distance.shape[1]
        assert distance.amin(0).max() < 0.1
        assert distance.amin(1).max() < 0.1


@pytest.mark.parametrize(
    'family', ['Faster R-CNN', 'Mask R-CNN', 'FCOS', 'Deformable DETR']
)
def test_joint_training_adds_both_losses(family):
    model = wrapped(plain_cfg(family), freeze_detector=False).train()
    assert model.detector.training
    inputs, samples = batch(num_classes=80)
    if family == 'Mask R-CNN':
        from mmdet.structures.mask import BitmapMasks

        for sample in samples:
            masks = np.ones((len(sample.gt_instances), 96, 96), np.uint8)
            sample.gt_instances.masks = BitmapMasks(masks, 96, 96)
    losses = model.loss(inputs, samples)
    assert {'loss_energy', 'loss_cls', 'loss_bbox'} <= set(losses)
    assert ('loss_mask' in losses) == (family == 'Mask R-CNN')
    losses['loss_energy'].backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in model.detector.neck.parameters()
    )
    total, _ = model.parse_losses(model.loss(inputs, samples))
    assert total > losses['loss_energy']


@pytest.mark.parametrize(
    'family, features',
    [
        ('RetinaNet', 'neck'),
        ('Deformable DETR', 'neck'),
        ('Deformable DETR', 'encoder'),
    ],
)
def test_the_detector_learns_the_same_from_chunks(family, features):
    """From a method without randomness, in a batch that fits one chunk or
    goes image by image."""
    model = wrapped(
        plain_cfg(family),
        dict(
            head=dict(fc_out_channels=16, act_cfg=dict(type='SiLU')),
            loss=dict(type='SMLoss'),
        ),
        freeze_detector=False,
        features=features,
    ).train()
    inputs, samples = batch(num_classes=80)
    grads = []
    for model.energy_model.chunked in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        losses = model.loss(inputs, copy.deepcopy(samples))
        losses['loss_energy'].backward()
        grads.append(
            {
                n: p.grad
                for n, p in model.named_parameters()
                if p.grad is not None
            }
        )
    whole, chunked = grads
    assert any(name.startswith('detector.neck') for name in whole)
    torch.testing.assert_close(chunked, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('family', ['ATSS', 'DINO', 'Mask R-CNN'])
def test_no_objects_and_no_detections(family, model):
    inputs, samples = batch(num_objects=(0, 0))
    loss = model.train().loss(inputs, copy.deepcopy(samples))['loss_energy']
    loss.backward()
    assert loss == 0
    if family == 'DINO':  # it always gives as many boxes as it has queries
        return
    model.box_source.test_cfg.score_thr = 1.1
    for result in results(model, inputs, samples):
        assert result.bboxes.shape == (0, 4) and len(result.scores) == 0


@pytest.mark.parametrize('family', ['FCOS', 'DINO', 'Faster R-CNN'])
def test_one_class_and_one_energy_for_all(family):
    cfg = plain_cfg(family)
    cfg.get('roi_head', cfg).bbox_head.num_classes = 1
    model = detect_everything(wrapped(cfg))
    assert model.energy_model.head.fc_logdensity.out_features == 1
    inputs, samples = batch(num_classes=1)
    assert model.train().loss(inputs, samples)['loss_energy'] > 0
    assert all(len(r) > 0 for r in results(model, inputs, samples))

    head = dict(class_agnostic=True, fc_out_channels=16)
    model = wrapped(plain_cfg(family), dict(head=head))
    assert model.energy_model.head.fc_logdensity.out_features == 1
    assert model.train().loss(*batch(num_classes=80))['loss_energy'] > 0


@pytest.mark.parametrize('family', ['ATSS', 'Mask R-CNN', 'DINO'])
def test_plain_detections_come_along(family, plain, model):
    inputs, samples = batch()
    model.refinement = dataclasses.replace(model.refinement, keep_plain=True)
    with torch.no_grad():
        ours = model.eval().predict(inputs, copy.deepcopy(samples))
    for sample, theirs in zip(
        ours, results(plain, inputs, samples), strict=True
    ):
        for name in ('bboxes', 'scores', 'labels'):
            torch.testing.assert_close(
                sample.plain_instances[name],
                theirs[name],
                atol=1e-3,
                rtol=1e-5,
            )
