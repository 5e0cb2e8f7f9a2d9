"""The detector: frozen and joint training, stages at test time, masks."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config

from ..conftest import CONFIGS, batch, build, energy_model_cfg, shrink


def results(model, inputs, samples, rescale=True):
    with torch.no_grad():
        out = model.eval().predict(inputs, copy.deepcopy(samples), rescale)
    return [sample.pred_instances for sample in out]


@pytest.fixture
def detector():
    """Random weights, made to detect something and to have slopes."""
    model = build(energy_model_cfg())
    torch.nn.init.normal_(model.roi_head.refiner.head.fc_logdensity.weight)
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=0.2)
    model.roi_head.test_cfg.score_thr = 0.2
    return model


def with_stages(model, **stages):
    from mmdet_ebm.models import Refinement

    model.roi_head.refinement = Refinement(**stages)
    return model


def test_frozen_detector_trains_the_energy_model_alone(detector):
    detector.train()
    assert detector.roi_head.refiner.training
    assert not any(
        module.training
        for name, module in detector.named_modules()
        if name and not name.startswith('roi_head.refiner')
    )
    before = copy.deepcopy(detector.state_dict())
    losses = detector.loss(*batch())
    assert {name for name in losses if 'loss' in name} == {'loss_energy'}
    optimiser = torch.optim.SGD(
        [p for p in detector.parameters() if p.requires_grad], lr=1.0
    )
    losses['loss_energy'].backward()
    optimiser.step()
    after = detector.state_dict()
    changed = {
        key for key in before if not torch.equal(before[key], after[key])
    }
    assert changed and all('roi_head.refiner' in key for key in changed)


def test_figures_for_the_log_are_no_part_of_the_loss(detector):
    losses = detector.train().loss(*batch())
    figures = {k: v for k, v in losses.items() if 'loss' not in k}
    assert set(figures) == {
        'logdensity_truth',
        'logdensity_noise',
        'logdensity_gap',
        'acc_energy',
    }
    assert not any(v.requires_grad for v in figures.values())
    total, logged = detector.parse_losses(losses)
    assert total == losses['loss_energy']
    assert figures.keys() < logged.keys()


def test_joint_training_adds_the_energy_loss():
    cfg = energy_model_cfg()
    cfg.freeze_detector = False
    model = build(cfg).train()
    assert model.backbone.training
    losses = model.loss(*batch())
    assert {'loss_energy', 'loss_cls', 'loss_bbox', 'loss_rpn_cls'} <= set(
        losses
    )
    losses['loss_energy'].backward()
    grads = [p.grad for p in model.neck.parameters() if p.grad is not None]
    assert any(grad.abs().sum() > 0 for grad in grads)


def test_plain_checkpoint_loads_as_it_is():
    plain_cfg = shrink(
        Config.fromfile(CONFIGS / 'bccd/faster-rcnn_r18-half_bccd.py').model
    )
    plain, energy = build(plain_cfg), build(energy_model_cfg())
    missing, unexpected = energy.load_state_dict(
        plain.state_dict(), strict=False
    )
    assert not unexpected
    assert missing and all('roi_head.refiner' in key for key in missing)


def test_without_stages_it_is_the_plain_detector(detector):
    plain = build(
        shrink(
            Config.fromfile(
                CONFIGS / 'bccd/faster-rcnn_r18-half_bccd.py'
            ).model
        )
    )
    plain.load_state_dict(
        {k: v for k, v in detector.state_dict().items() if 'refiner' not in k}
    )
    plain.roi_head.test_cfg.score_thr = 0.2
    inputs, samples = batch()
    off = with_stages(detector, energy_nms=False, ascent=False)
    for ours, theirs in zip(
        results(off, inputs, samples),
        results(plain, inputs, samples),
        strict=True,
    ):
        assert len(ours) == len(theirs) > 0
        assert set(ours.keys()) == set(theirs.keys())
        for key in theirs.keys():
            assert torch.equal(ours[key], theirs[key])


def test_ascent_moves_the_plain_boxes_and_keeps_scores(detector):
    inputs, samples = batch()
    plain = results(
        with_stages(detector, energy_nms=False, ascent=False), inputs, samples
    )
    refined = results(
        with_stages(detector, energy_nms=False, ascent=True), inputs, samples
    )
    for before, after in zip(plain, refined, strict=True):
        assert torch.equal(before.scores, after.scores)
        torch.testing.assert_close(before.bboxes, after.initial_bboxes)
        assert not torch.allclose(before.bboxes, after.bboxes)


def test_energy_nms_keeps_boxes_that_the_box_head_made(detector):
    inputs, samples = batch()
    detector = with_stages(detector, energy_nms=True, ascent=False)
    for sample, result in zip(samples, results(detector, inputs, samples)):
        assert len(result) > 0
        assert 'initial_bboxes' not in result
        assert (result.scores > 0.2).all()
        assert (result.scores.diff() <= 0).all()
        height, width = sample.ori_shape
        assert (result.bboxes[:, 2] <= width).all()
        assert (result.bboxes[:, 3] <= height).all()


def test_energies_of_the_results_are_those_of_their_boxes(detector):
    """In network-input pixels, for the label of each box."""
    from mmdet_ebm.models import Boxes

    inputs, samples = batch()
    refiner = detector.roi_head.refiner
    found = results(
        with_stages(detector, energy_nms=True, ascent=False),
        inputs,
        samples,
        rescale=False,
    )
    with torch.no_grad():
        surface = refiner.surface(
            detector.extract_feat(inputs), [s.img_shape for s in samples]
        )
    boxes = Boxes.from_images(
        [f.bboxes for f in found], [f.labels for f in found]
    )
    torch.testing.assert_close(
        refiner.logdensity(surface, boxes),
        torch.cat([f.logdensities for f in found]),
        rtol=1e-3,
        atol=1e-4,
    )


def test_rescaling_comes_last(detector):
    inputs, samples = batch()
    for small, large in zip(
        results(detector, inputs, samples, False),
        results(detector, inputs, samples, True),
    ):
        torch.testing.assert_close(small.bboxes * 2, large.bboxes)
        torch.testing.assert_close(
            small.initial_bboxes * 2, large.initial_bboxes
        )


def test_no_detections_and_no_objects(detector):
    detector.roi_head.test_cfg.score_thr = 1.1
    inputs, samples = batch(num_objects=(0, 0))
    for result in results(detector, inputs, samples):
        assert result.bboxes.shape == (0, 4) and len(result.scores) == 0
    loss = detector.train().loss(inputs, samples)['loss_energy']
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize('counts', [(0, 0), (0, 3)])
@pytest.mark.parametrize('energy_nms', [True, False])
def test_images_without_proposals(detector, counts, energy_nms):
    from mmengine.structures import InstanceData

    inputs, samples = batch()
    detector = with_stages(detector, energy_nms=energy_nms)
    proposals = [
        InstanceData(bboxes=torch.tensor([[5.0, 5, 40, 50]] * n).view(n, 4))
        for n in counts
    ]
    with torch.no_grad():
        found = detector.eval().roi_head.predict(
            detector.extract_feat(inputs), proposals, samples, rescale=True
        )
    assert found[0].bboxes.shape == (0, 4)
    assert (len(found[1]) > 0) == (counts[1] > 0)


def test_one_image_without_objects_beside_one_with(detector):
    loss = detector.train().loss(*batch(num_objects=(3, 0)))['loss_energy']
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


def test_candidates_are_limited_to_the_best_scores(detector):
    inputs, samples = batch()
    counts = {}
    for nms_pre in (3, 10_000, -1):
        detector = with_stages(
            detector, energy_nms=True, ascent=False, nms_pre=nms_pre
        )
        counts[nms_pre] = [len(r) for r in results(detector, inputs, samples)]
    assert max(counts[3]) <= 3 < max(counts[-1])
    assert counts[-1] == counts[10_000]


@pytest.mark.parametrize(
    'nms',
    [
        dict(type='soft_nms', iou_threshold=0.5),
        dict(type='nms', iou_threshold=0.5, class_agnostic=True),
    ],
)
def test_other_nms_with_energies_is_refused(detector, nms):
    detector.roi_head.test_cfg.nms = nms
    with pytest.raises(ValueError, match='energy_nms'):
        results(detector, *batch())


def test_number_of_bins_is_given_once():
    cfg = energy_model_cfg()
    cfg.roi_head.refiner.roi_extractor = dict(output_size=(3, 5))
    loss = build(cfg).loss(*batch())['loss_energy']
    assert loss > 0


def test_unknown_stages_are_refused():
    with pytest.raises(TypeError, match='ascend'):
        build(energy_model_cfg(refinement=dict(ascend=True)))


def test_class_counts_must_agree():
    cfg = energy_model_cfg()
    cfg.roi_head.bbox_head.num_classes = 5
    assert build(cfg).roi_head.refiner.head.num_classes == 5
    cfg.roi_head.refiner.head.num_classes = 3
    with pytest.raises(ValueError, match='num_classes=5'):
        build(cfg)


def test_plain_roi_head_is_refused():
    cfg = energy_model_cfg()
    cfg.roi_head.type = 'StandardRoIHead'
    del cfg.roi_head['refiner'], cfg.roi_head['refinement']
    with pytest.raises(TypeError, match='EnergyRoIHead'):
        build(cfg)


def test_one_class():
    cfg = energy_model_cfg()
    cfg.roi_head.bbox_head.num_classes = 1
    model = build(cfg)
    model.roi_head.test_cfg.score_thr = 0.0
    inputs, samples = batch(num_classes=1)
    assert model.train().loss(inputs, samples)['loss_energy'] > 0
    assert all(len(r) > 0 for r in results(model, inputs, samples))


def test_class_agnostic_boxes_of_the_box_head(detector):
    cfg = energy_model_cfg()
    cfg.roi_head.bbox_head.reg_class_agnostic = True
    model = build(cfg)
    model.roi_head.test_cfg.score_thr = 0.0
    assert all(len(r) > 0 for r in results(model, *batch()))


def test_masks_are_predicted_on_the_refined_boxes():
    """A Mask R-CNN with the energy RoI head: same energies, masks attached."""
    mask = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    mask.update(type='EnergyTwoStageDetector')
    energy = energy_model_cfg()
    mask.roi_head.update(type='EnergyRoIHead', refiner=energy.roi_head.refiner)
    mask.roi_head.bbox_head.num_classes = 3
    mask.roi_head.mask_head.num_classes = 3
    model = build(shrink(mask))
    model.roi_head.test_cfg.score_thr = 0.0
    model.roi_head.test_cfg.max_per_img = 5
    torch.nn.init.normal_(model.roi_head.refiner.head.fc_logdensity.weight)
    inputs, samples = batch()
    seen = []
    forward = model.roi_head._mask_forward
    model.roi_head._mask_forward = lambda x, rois: (
        seen.append(rois) or (forward(x, rois))
    )
    found = results(model, inputs, samples)
    boxes = torch.cat([f.bboxes for f in found])
    torch.testing.assert_close(seen[0][:, 1:] * 2, boxes)
    for result, sample in zip(found, samples):
        assert result.masks.shape == (len(result), *sample.ori_shape)
        shift = (result.initial_bboxes - result.bboxes).abs()
        assert shift.max() < 40  # one frame for both


def test_registered():
    for name in (
        'EnergyTwoStageDetector',
        'EnergyRoIHead',
        'EnergyRefiner',
        'EnergyHead',
        'PreciseRoIExtractor',
        'NCELoss',
        'NCEPlusLoss',
    ):
        assert MODELS.get(name) is not None
