"""Detectron's convention of boxes: conversions in, conversions out."""

import copy

import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor

from mmdet_ebm.models import (
    DetectronAnchorGenerator,
    DetectronBoxCoder,
    Refinement,
)

from ...small_models import batch, build, energy_model_cfg, predict


@pytest.fixture
def coder():
    return DetectronBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))


@pytest.fixture
def twins(detector):
    """The detector in mmdet's convention, and the same in Detectron's."""
    other = build(energy_model_cfg(type='DetectronEnergyDetector'))
    other.load_state_dict(detector.state_dict())
    other.detector.roi_head.test_cfg.score_thr = 0.2
    return detector, other


@pytest.fixture
def scaled_batch():
    inputs, samples = batch()
    for sample in samples:
        sample.set_metainfo(dict(scale_factor=(0.5, 0.25)))
    return inputs, samples


def test_anchors_are_rounded_before_they_are_scaled():
    generator = DetectronAnchorGenerator([4], [0.5, 1.0, 2.0], [8])
    anchors = generator.base_anchors[0]
    sides = anchors[:, 2:] - anchors[:, :2] + 1
    assert sides.tolist() == [[48, 24], [32, 32], [24, 48]]
    assert ((anchors[:, :2] + anchors[:, 2:]) / 2 == 1.5).all()


def test_anchors_around_given_centres_are_refused():
    with pytest.raises(ValueError, match='takes no centers'):
        DetectronAnchorGenerator([4], [1.0], [8], centers=[(0.0, 0.0)])


def test_decoding_inverts_encoding(coder):
    corner = 50 * torch.rand(2, 6, 2)
    boxes, others = torch.cat(
        [corner, corner + 5 + 20 * torch.rand(2, 6, 2)], -1
    )
    deltas = coder.encode(boxes, others)
    torch.testing.assert_close(coder.decode(boxes, deltas), others)
    # Several classes of deltas side by side.
    torch.testing.assert_close(
        coder.decode(boxes, deltas.repeat(1, 3)), others.repeat(1, 3)
    )


def test_boxes_are_clipped_to_the_indices_of_pixels(coder):
    boxes = torch.tensor([[-5.0, -5, 200, 200]])
    clipped = coder.decode(boxes, torch.zeros(1, 4), max_shape=(60, 80))
    assert clipped.tolist() == [[0, 0, 79, 59]]


@pytest.mark.parametrize('rescale', [True, False])
def test_results_end_where_the_next_pixel_begins(twins, scaled_batch, rescale):
    """A pixel of the original image, in either frame."""
    for model in twins:
        model.refinement = Refinement(keep_plain=True)
    theirs, ours = (predict(model, *scaled_batch, rescale) for model in twins)
    pixel = torch.tensor([0, 0, 1, 1] if rescale else [0, 0, 0.5, 0.25])
    for their, our in zip(theirs, ours, strict=True):
        assert len(our.pred_instances) > 0
        for field, name in (
            ('pred_instances', 'bboxes'),
            ('pred_instances', 'initial_bboxes'),
            ('plain_instances', 'bboxes'),
        ):
            torch.testing.assert_close(
                our.get(field)[name], their.get(field)[name] + pixel
            )
        for name in ('scores', 'labels', 'logdensities'):
            torch.testing.assert_close(
                our.pred_instances[name],
                their.pred_instances[name],
                rtol=0,
                atol=0,
                equal_nan=True,
            )


def test_without_stages_the_detectors_boxes_are_converted_too(
    twins, scaled_batch
):
    for model in twins:
        model.refinement = Refinement(energy_nms=False, ascent=False)
    for their, our in zip(*(predict(m, *scaled_batch) for m in twins)):
        torch.testing.assert_close(
            our.pred_instances.bboxes,
            their.pred_instances.bboxes + torch.tensor([0, 0, 1, 1]),
        )


@pytest.mark.parametrize('wrapper', [torch.Tensor, HorizontalBoxes])
def test_ground_truth_ends_at_its_last_pixel(twins, scaled_batch, wrapper):
    inputs, samples = scaled_batch
    moved = copy.deepcopy(samples)
    for sample, other in zip(samples, moved):
        boxes = sample.gt_instances.bboxes
        other.gt_instances.bboxes = boxes - torch.tensor([0, 0, 0.5, 0.25])
        sample.gt_instances.bboxes = wrapper(boxes)
    before = copy.deepcopy(samples)
    losses = []
    for model, given in zip(twins, (moved, samples)):
        torch.manual_seed(1)
        losses.append(model.train().loss(inputs, given)['loss_energy'])
    torch.testing.assert_close(*losses)
    for sample, old in zip(samples, before):  # is not changed in place
        now, then = (
            get_box_tensor(s.gt_instances.bboxes) for s in (sample, old)
        )
        assert torch.equal(now, then)


def test_joint_training():
    cfg = energy_model_cfg(
        type='DetectronEnergyDetector', freeze_detector=False
    )
    losses = build(cfg).train().loss(*batch())
    assert {'loss_energy', 'loss_cls', 'loss_rpn_bbox'} <= set(losses)
