"""The detector: what it trains, finds and refuses; a Faster R-CNN here."""

import copy

import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData

from mmdet_ebm.models import Refinement
from mmdet_ebm.ops import Boxes

from ...small_models import (
    batch,
    build,
    detect_everything,
    energy_model_cfg,
    predict,
    results,
)

# ------------------------------------------------------------------- training


def test_training_leaves_a_frozen_detector_bit_equal(detector):
    """Its statistics of normalisation too."""
    before = copy.deepcopy(detector.detector.state_dict())
    energy_before = copy.deepcopy(detector.energy_model.state_dict())
    detector.train()
    assert not any(m.training for m in detector.detector.modules())
    assert all(m.training for m in detector.energy_model.modules())
    # What an optimiser, or distributed training, takes for trained.
    assert not any(p.requires_grad for p in detector.detector.parameters())
    optimiser = torch.optim.SGD(
        [p for p in detector.parameters() if p.requires_grad], lr=0.1
    )
    for _ in range(3):
        losses = detector.loss(*batch())
        assert {name for name in losses if 'loss' in name} == {'loss_energy'}
        optimiser.zero_grad()
        losses['loss_energy'].backward()
        optimiser.step()
    after = detector.detector.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(
        not torch.equal(value, energy_before[name])
        for name, value in detector.energy_model.state_dict().items()
    )


def test_figures_for_the_log_are_no_part_of_the_loss(detector):
    losses = detector.train().loss(*batch())
    figures = {k: v for k, v in losses.items() if 'loss' not in k}
    assert set(figures) == {
        'logdensity_truth',
        'logdensity_noise',
        'logdensity_gap',
        'acc_energy',
    }
    total, logged = detector.parse_losses(losses)
    assert total == losses['loss_energy']
    assert figures.keys() < logged.keys()


def test_joint_training_moves_the_detector_too():
    model = build(energy_model_cfg(freeze_detector=False)).train()
    assert model.detector.backbone.training
    losses = model.loss(*batch())
    assert {'loss_energy', 'loss_cls', 'loss_bbox', 'loss_rpn_cls'} <= set(
        losses
    )
    losses['loss_energy'].backward()
    grads = [p.grad for p in model.detector.neck.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


def test_images_without_objects(detector):
    detector.train()
    loss = detector.loss(*batch(num_objects=(0, 0)))['loss_energy']
    loss.backward()
    assert loss == 0
    loss = detector.loss(*batch(num_objects=(3, 0)))['loss_energy']
    assert loss > 0 and loss.isfinite()


def test_crowd_and_ignored_boxes_are_not_trained_on(detector):
    detector.train()
    inputs, samples = batch()
    torch.manual_seed(1)
    before = detector.loss(inputs, copy.deepcopy(samples))['loss_energy']
    for sample in samples:
        sample.ignored_instances = sample.gt_instances.clone()
    torch.manual_seed(1)
    after = detector.loss(inputs, samples)['loss_energy']
    assert torch.equal(before, after)


def test_truth_may_come_in_mmdets_box_type(detector):
    inputs, samples = batch()
    losses = []
    for wrapper in (torch.Tensor, HorizontalBoxes):
        for sample in samples:
            boxes = sample.gt_instances.bboxes
            sample.gt_instances.bboxes = wrapper(boxes)
        torch.manual_seed(1)
        losses.append(detector.train().loss(inputs, samples)['loss_energy'])
    assert torch.equal(*losses)


def test_rotated_boxes_are_refused(detector):
    inputs, samples = batch()
    for sample in samples:
        boxes = sample.gt_instances.pop('bboxes')
        sample.gt_instances.bboxes = torch.cat([boxes, boxes[:, :1]], 1)
    with pytest.raises(ValueError, match='rotated'):
        detector.train().loss(inputs, samples)


# -------------------------------------------------------------------- results


def test_energies_of_the_results_are_those_of_their_boxes(detector):
    """In network-input pixels, for the label of each box."""
    inputs, samples = batch()
    detector.refinement = Refinement(energy_nms=True, ascent=False)
    found = results(detector, inputs, samples, rescale=False)
    with torch.no_grad():
        pyramid = detector.energy_model.pyramid(
            detector.extract_feat(inputs), [s.img_shape for s in samples]
        )
    boxes = Boxes.from_images(
        [f.bboxes for f in found], [f.labels for f in found]
    )
    torch.testing.assert_close(
        detector.energy_model.logdensity(pyramid, boxes),
        torch.cat([f.logdensities for f in found]),
        rtol=1e-3,
        atol=1e-4,
    )


def test_energy_nms_keeps_boxes_that_the_box_head_made(detector):
    inputs, samples = batch()
    detector.refinement = Refinement(ascent=False)
    for sample, result in zip(samples, results(detector, inputs, samples)):
        assert len(result) > 0
        assert 'initial_bboxes' not in result
        assert (result.scores > 0.2).all()
        assert (result.scores.diff() <= 0).all()
        height, width = sample.ori_shape
        assert (result.bboxes[:, 2] <= width).all()
        assert (result.bboxes[:, 3] <= height).all()


def test_what_detect_gives_is_what_predict_rescales(detector):
    inputs, samples = batch()
    with torch.no_grad():
        found = detector.eval().detect(inputs, samples)
    predicted = predict(detector, inputs, samples)
    assert found.pyramid.image_sizes == [s.img_shape for s in samples]
    assert len(found.neck_maps) == 5
    for network, plain, sample in zip(
        found.instances, found.plain, predicted, strict=True
    ):
        original = sample.pred_instances
        for name in ('bboxes', 'initial_bboxes'):
            torch.testing.assert_close(network[name] * 2, original[name])
        torch.testing.assert_close(
            plain.bboxes * 2, sample.plain_instances.bboxes
        )


@pytest.mark.parametrize('energy_nms', [True, False])
def test_plain_instances_are_the_detectors_own(detector, energy_nms):
    inputs, samples = batch()
    detector.refinement = Refinement(energy_nms=energy_nms, keep_plain=True)
    for sample, expected in zip(
        predict(detector, inputs, samples),
        results(detector.detector, inputs, samples),
        strict=True,
    ):
        assert len(expected) > 0
        assert not sample.pred_instances.metainfo_keys()
        for name in ('bboxes', 'scores', 'labels'):
            torch.testing.assert_close(
                sample.plain_instances[name], expected[name]
            )


@pytest.mark.parametrize('energy_nms', [True, False])
@pytest.mark.parametrize('ascent', [True, False])
def test_uncertainty_changes_nothing_else(detector, energy_nms, ascent):
    inputs, samples = batch()
    stages = dict(energy_nms=energy_nms, ascent=ascent, ascent_per_img=-1)
    detector.refinement = Refinement(**stages)
    without = results(detector, inputs, samples)
    detector.refinement = Refinement(**stages, uncertainty=True)
    for one, two in zip(
        without, results(detector, inputs, samples), strict=True
    ):
        assert set(two.keys()) - set(one.keys()) == {'box_std', 'box_logprobs'}
        for name in one.keys():
            torch.testing.assert_close(
                one[name], two[name], rtol=0, atol=0, equal_nan=True
            )
        # In network-input pixels, smaller boxes than 2 have none.
        sides = (two.bboxes[:, 2:] - two.bboxes[:, :2]) / 2
        known = two.box_std.isfinite().all(1)
        assert torch.equal(known, (sides >= 2).all(1))


def test_no_detections(detector):
    detector.detector.roi_head.test_cfg.score_thr = 1.1
    detector.refinement = Refinement(uncertainty=True, keep_plain=True)
    for sample in predict(detector, *batch()):
        found = sample.pred_instances
        for name in ('bboxes', 'initial_bboxes', 'box_std'):
            assert found[name].shape == (0, 4)
        assert len(sample.plain_instances) == 0


@pytest.mark.parametrize('counts', [(0, 0), (0, 3)])
@pytest.mark.parametrize('energy_nms', [True, False])
def test_given_proposals_or_none_of_an_image(detector, counts, energy_nms):
    inputs, samples = batch()
    detector.refinement = Refinement(energy_nms=energy_nms)
    for sample, count in zip(samples, counts):
        sample.proposals = InstanceData(
            bboxes=torch.tensor([[5.0, 5, 40, 50]]).repeat(count, 1)
        )
    found = results(detector, inputs, samples)
    assert found[0].bboxes.shape == (0, 4)
    assert (len(found[1]) > 0) == (counts[1] > 0)


def test_one_class_and_boxes_for_all_classes():
    cfg = energy_model_cfg()
    cfg.detector.roi_head.bbox_head.num_classes = 1
    model = detect_everything(build(cfg))
    inputs, samples = batch(num_classes=1)
    assert model.train().loss(inputs, samples)['loss_energy'] > 0
    assert all(len(r) > 0 for r in results(model, inputs, samples))

    cfg = energy_model_cfg()
    cfg.detector.roi_head.bbox_head.reg_class_agnostic = True
    model = detect_everything(build(cfg))
    assert all(len(r) > 0 for r in results(model, *batch()))


def test_a_copy_is_a_model_of_its_own(detector):
    """As for moving averages of weights."""
    inputs, samples = batch()
    before = results(detector, inputs, samples)
    other = copy.deepcopy(detector)
    for ours, theirs in zip(
        results(other, inputs, samples), before, strict=True
    ):
        assert torch.equal(ours.bboxes, theirs.bboxes)
    torch.nn.init.zeros_(other.detector.roi_head.bbox_head.fc_reg.weight)
    torch.nn.init.zeros_(other.detector.neck.fpn_convs[0].conv.weight)
    changed = results(other, inputs, samples)[0].bboxes
    assert changed.shape != before[0].bboxes.shape or not torch.allclose(
        changed, before[0].bboxes
    )
    for ours, theirs in zip(
        results(detector, inputs, samples), before, strict=True
    ):
        assert torch.equal(ours.bboxes, theirs.bboxes)


@pytest.mark.parametrize(
    'density, steps',
    [
        ('fitted', 2),
        (dict(temperature=2.0, side_std=0.04), 2),
        (dict(temperature=2.0), 4),
        (None, 4),
    ],
)
def test_medians_save_steps_where_a_prior_has_them(density, steps):
    cfg = energy_model_cfg()
    cfg.energy_model.density = density
    assert build(cfg).energy_model.ascent.num_steps == steps


def test_tensor_mode_gives_the_detectors_outputs(detector):
    inputs, samples = batch()
    with torch.no_grad():
        ours = detector.eval()(inputs, samples, mode='tensor')
        theirs = detector.detector(inputs, samples, mode='tensor')
    assert torch.equal(ours[0][0], theirs[0][0])


@pytest.mark.parametrize(
    'density, nms, said',
    [
        ('fitted', 'nms', 'never fitted'),
        (dict(vote_share=1.0), 'soft_nms', 'has no class-wise NMS'),
        (dict(object_mass=1.0), 'soft_nms', 'has no class-wise NMS'),
        (dict(vote_share=1.0), 'nms', ''),
        (dict(side_std=0.1), 'soft_nms', ''),
    ],
)
def test_what_keeps_refinement_from_its_best_is_said_once(
    density, nms, said, caplog
):
    cfg = energy_model_cfg()
    cfg.energy_model.density = density
    cfg.detector.test_cfg.rcnn.nms.type = nms
    model = detect_everything(build(cfg)).eval()
    logger = MMLogger.get_current_instance()
    logger.setLevel('INFO')  # forgets what it knows of disabled levels
    logger.addHandler(caplog.handler)
    inputs, samples = batch()
    with torch.no_grad():
        for _ in range(2):
            model.predict(inputs, copy.deepcopy(samples))
    logger.removeHandler(caplog.handler)
    assert len(caplog.records) == bool(said)
    assert said in caplog.text
