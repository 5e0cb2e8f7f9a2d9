"""Published weights: what becomes of each tensor, and the same outputs."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmdet_ebm.apis.maskrcnn_benchmark import (
    convert_checkpoint,
    convert_state_dict,
)
from mmdet_ebm.models import Refinement
from mmdet_ebm.ops import Boxes, prroi_pool

from ..helpers import run_tool
from ..small_models import CONFIGS, batch, build
from . import reference_detectron as reference

CONFIG = CONFIGS / 'published/faster-rcnn_r50-caffe_fpn_nce-plus_coco.py'
SMALL = dict(width=4, fpn=8, hidden=16, classes=4)
SIZE = (96, 128)


def whole_config():
    config = Config.fromfile(CONFIG)
    config.model.detector.backbone.init_cfg = None
    return config


def small_config():
    config = whole_config()
    cfg = config.model.detector
    cfg.backbone.base_channels = 4
    cfg.neck.update(in_channels=[16, 32, 64, 128], out_channels=8)
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    cfg.roi_head.bbox_roi_extractor.out_channels = 8
    cfg.roi_head.bbox_head.update(
        in_channels=8, fc_out_channels=16, num_classes=3
    )
    energy_model = config.model.energy_model
    energy_model.head.fc_out_channels = 16
    energy_model.loss.num_samples = 8
    return config


@pytest.fixture(scope='module')
def model():
    return build(small_config().model)


@pytest.fixture
def weights():
    """A made-up checkpoint whose activations are of ordinary size."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name, shape in reference.names_and_shapes(**SMALL).items():
        value = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            value *= (2 / value[0].numel()) ** 0.5
        if 'cell_anchors' in name:
            value = reference.cell_anchors(int(name[-1]))
        elif name.endswith('running_var'):
            value = 0.5 + value.abs()
        elif '.bn3.weight' in name:
            value *= 0.3
        elif 'fpn_layer' in name:
            value /= 8
        made[name] = value
    made['backbone.body.stem.conv1.weight'] /= 100  # of images in 0..255
    # So that few deltas are large, and no class is certain.
    made['rpn.head.bbox_pred.weight'] *= 0.3
    made['roi_heads.box.predictor.cls_score.weight'] *= 0.5
    made['roi_heads.box.predictor.cls_score.bias'] *= 0.1
    return made


@pytest.fixture
def converted(model, weights):
    conversion = convert_state_dict(weights, model)
    model.load_state_dict(conversion.state_dict, strict=True)
    return model.eval()


@pytest.fixture
def image():
    return torch.randint(
        256, (1, 3, *SIZE), generator=torch.Generator().manual_seed(2)
    ).float()


def meta():
    return dict(
        img_shape=SIZE,
        ori_shape=SIZE,
        scale_factor=(1.0, 1.0),
        batch_input_shape=SIZE,
        pad_shape=SIZE,
    )


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * float(expected.abs().max()),
    )


def features(model, image):
    with torch.no_grad():
        inputs = model.data_preprocessor(
            dict(inputs=[image[0].byte()], data_samples=[])
        )['inputs']
        return model.extract_feat(inputs)


def test_every_tensor_of_the_true_shapes_is_accounted_for():
    """All 81 classes, all widths; without memory for them."""
    shapes = reference.names_and_shapes()
    assert len(shapes) == 5 * 53 + 2 * 8 + 6 + 5 + 2 * 4 + 6
    source = {
        f'module.{name}': torch.ones(1).expand(shape)
        for name, shape in shapes.items()
    }
    for level in range(5):
        source[f'module.rpn.anchor_generator.cell_anchors.{level}'] = (
            reference.cell_anchors(level)
        )
    full = build(whole_config().model)
    conversion = convert_state_dict(source, full)
    assert set(conversion.used) | set(conversion.dropped) == set(shapes)
    assert set(conversion.state_dict) == {
        key for key in full.state_dict() if 'extra_state' not in key
    }
    assert len(conversion.dropped) == 5  # the anchors
    assert conversion.has_energy
    head = full.energy_model.head
    assert head.fc_logdensity.out_features == 80
    assert full.detector.roi_head.bbox_head.fc_cls.out_features == 81


def test_feature_maps_are_the_same(converted, weights, image):
    """Colours, means, caffe strides, frozen batch norm, pyramid."""
    expected = reference.pyramid(weights, image)
    maps = features(converted, image)
    assert len(maps) == len(expected) == 5
    for mine, theirs in zip(maps, expected):
        close(mine, theirs)


def test_anchors_are_detectrons(converted):
    for level, anchors in enumerate(
        converted.detector.rpn_head.prior_generator.base_anchors
    ):
        assert torch.equal(anchors, reference.cell_anchors(level))


def test_proposals_are_the_same(converted, weights, image):
    """Anchors, box coder, clipping, NMS with the old widths."""
    with torch.no_grad():
        maps = features(converted, image)
        (found,) = converted.detector.rpn_head.predict_by_feat(
            *converted.detector.rpn_head(maps), batch_img_metas=[meta()]
        )
    boxes, scores = reference.proposals(
        weights, reference.pyramid(weights, image), SIZE
    )
    assert len(found) == len(boxes) > 100
    close(found.scores, scores)
    close(found.bboxes, boxes, 1e-3)


def test_class_scores_and_boxes_are_the_same(converted, weights, image):
    """RoIAlign, order of features and classes, delta weights, coder."""
    levels = reference.pyramid(weights, image)
    rois = reference.proposals(weights, levels, SIZE)[0][:50]
    probabilities, boxes = reference.box_head(weights, levels, rois, SIZE)
    assert probabilities.std(0).min() > 1e-3  # not the same for all
    with torch.no_grad():
        (raw,) = converted.detector.roi_head.bbox_head.predict_by_feat(
            *[(x,) for x in _box_outputs(converted, image, rois)],
            batch_img_metas=[meta()],
            rcnn_test_cfg=None,
        )
    close(
        raw.scores, torch.cat([probabilities[:, 1:], probabilities[:, :1]], 1)
    )
    close(raw.bboxes.unflatten(1, (3, 4)), boxes[:, 1:], 1e-3)


def _box_outputs(model, image, rois):
    rois = torch.cat([torch.zeros(len(rois), 1), rois], 1)
    out = model.detector.roi_head._bbox_forward(features(model, image), rois)
    return rois, out['cls_score'], out['bbox_pred']


def test_logdensities_are_the_same(converted, weights, image):
    """Order of features and classes in the energy head."""
    levels = reference.pyramid(weights, image)
    rois = reference.proposals(weights, levels, SIZE)[0][:40]
    labels = torch.arange(40) % 3
    at = reference.level_of(rois)
    pooled = torch.stack(
        [
            prroi_pool(
                levels[level],
                torch.cat([torch.zeros(1), box])[None],
                7,
                0.25 / 2**level,
            )[0]
            for box, level in zip(rois, at.tolist())
        ]
    )
    values = reference.predictor(
        weights,
        'iou.predictor.iou_pred',
        reference.head(weights, 'iou', pooled),
    )
    energy_model = converted.energy_model
    pyramid = energy_model.pyramid(features(converted, image), [SIZE])
    close(
        energy_model.logdensity(pyramid, Boxes.from_images([rois], [labels])),
        values[torch.arange(40), labels + 1],
        1e-3,
    )


def test_a_converted_model_trains_and_predicts(converted):
    model = copy.deepcopy(converted).train()
    inputs, samples = batch()
    for sample in samples:
        sample.set_metainfo(dict(scale_factor=(0.5, 0.25)))
    before = copy.deepcopy(samples)
    seen = {}
    energy_model = model.energy_model
    original = energy_model.loss

    def loss(features, boxes, *args):
        seen['boxes'] = boxes
        return original(features, boxes, *args)

    energy_model.loss = loss
    model.loss(inputs, samples)['loss_energy'].backward()
    assert all(p.grad is not None for p in energy_model.parameters())
    # The last pixel is one of the original image's before the end.
    for mine, sample, old in zip(seen['boxes'], samples, before):
        expected = old.gt_instances.bboxes - torch.tensor([0, 0, 0.5, 0.25])
        assert torch.equal(mine, expected)
        assert torch.equal(sample.gt_instances.bboxes, old.gt_instances.bboxes)
    del energy_model.loss

    model.eval()
    inner = InstanceData(
        bboxes=torch.tensor([[2.0, 3, 5, 9]]),
        scores=torch.ones(1),
        labels=torch.zeros(1).long(),
    )
    find = model.box_source.candidates
    model.box_source.candidates = lambda *args: (
        find(*args) and [inner, inner[:0]]
    )
    model.refinement = Refinement(energy_nms=True, ascent=False)
    with torch.no_grad():
        for rescale, expected in (
            (True, [4, 12, 11, 37]),
            (False, [2, 3, 5.5, 9.25]),
        ):
            some, none = model.predict(inputs, samples, rescale)
            assert some.pred_instances.bboxes.tolist() == [expected]
            assert none.pred_instances.bboxes.shape == (0, 4)
    model.box_source.candidates = find
    model.refinement = Refinement()
    with torch.no_grad():
        model.detector.roi_head.test_cfg.score_thr = 0.0
        result = model.predict(inputs, samples)[0].pred_instances
    assert {'logdensities', 'initial_bboxes'} <= set(result.keys())
    assert len(result) > 0 and result.bboxes.isfinite().all()


def test_joint_training_runs_in_the_old_convention(converted):
    model = copy.deepcopy(converted)
    model.freeze_detector = False
    model.requires_grad_(True)
    model.train()
    losses = model.loss(*batch())
    assert {'loss_energy', 'loss_cls', 'loss_rpn_bbox'} <= set(losses)
    assert all(
        torch.as_tensor(v).isfinite().all()
        for value in losses.values()
        for v in (value if isinstance(value, list) else [value])
    )


def test_a_file_becomes_a_checkpoint(model, weights, tmp_path):
    training = dict(model=weights, optimizer=dict(state={}), iteration=60000)
    torch.save(training, tmp_path / 'published.pth')
    conversion = convert_checkpoint(
        tmp_path / 'published.pth', tmp_path / 'out.pth', model
    )
    assert {'optimizer', 'iteration'} < set(conversion.dropped)
    written = torch.load(tmp_path / 'out.pth')
    assert written['meta']['converted_from'] == 'published.pth'
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(written['state_dict'], strict=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_detector_alone_becomes_a_checkpoint(model, weights, tmp_path):
    detector = {
        f'module.{key}': value
        for key, value in weights.items()
        if not key.startswith('roi_heads.iou')
    }
    torch.save(detector, tmp_path / 'detector.pth')
    conversion = convert_checkpoint(
        tmp_path / 'detector.pth', tmp_path / 'out.pth', model
    )
    assert not conversion.has_energy
    state = torch.load(tmp_path / 'out.pth')['state_dict']
    missing = set(model.state_dict()) - {f'detector.{key}' for key in state}
    assert missing and all('energy_model' in key for key in missing)


def without(name):
    return lambda weights: weights.pop(name)


def put(name, value):
    return lambda weights: weights.__setitem__(name, value)


@pytest.mark.parametrize(
    'spoil, message',
    [
        (
            without('backbone.body.layer3.5.bn2.running_var'),
            'there is no backbone.body.layer3.5.bn2.running_var',
        ),
        (
            without('roi_heads.iou.predictor.iou_pred.bias'),
            'there is no roi_heads.iou.predictor.iou_pred.bias',
        ),
        (
            put('roi_heads.mask.conv.weight', torch.ones(2)),
            'there is no place for roi_heads.mask.conv.weight',
        ),
        (
            put(
                'backbone.body.layer3.6.conv1.weight', torch.ones(16, 64, 1, 1)
            ),
            'there is no place for backbone.body.layer3.6.conv1.weight',
        ),
        (
            put('rpn.head.conv.bias', torch.full((8,), torch.nan)),
            'not finite: rpn.head.conv.bias',
        ),
        (
            put('roi_heads.box.predictor.cls_score.bias', torch.ones(5)),
            'of another shape: roi_heads.box.predictor.cls_score.bias',
        ),
        (
            put('backbone.body.stem.bn1.running_var', torch.zeros(4)),
            'running_var is not positive',
        ),
        (
            put('rpn.anchor_generator.cell_anchors.0', torch.ones(3, 4)),
            'cell_anchors.0 has the anchors',
        ),
        (lambda weights: weights.clear(), 'there is no'),
    ],
)
def test_what_does_not_fit_is_refused(
    model, weights, tmp_path, spoil, message
):
    spoil(weights)
    torch.save(dict(model=weights), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=f'bad.pth is not.*{message}'):
        convert_checkpoint(tmp_path / 'bad.pth', tmp_path / 'out.pth', model)
    assert [path.name for path in tmp_path.iterdir()] == ['bad.pth']


def test_a_truncated_file_is_refused(model, weights, tmp_path):
    path = tmp_path / 'bad.pth'
    torch.save(dict(model=weights), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match='bad.pth cannot be read'):
        convert_checkpoint(path, tmp_path / 'out.pth', model)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='is of list'):
        convert_checkpoint(path, tmp_path / 'out.pth', model)
    assert [path.name for path in tmp_path.iterdir()] == ['bad.pth']


def test_the_command_reports_and_refuses(
    weights, tmp_path, monkeypatch, capsys
):
    small_config().dump(tmp_path / 'config.py')
    torch.save(weights, tmp_path / 'published.pth')
    arguments = (
        'convert_checkpoint',
        tmp_path / 'published.pth',
        tmp_path / 'new/out.pth',
        '--config',
        tmp_path / 'config.py',
    )
    run_tool(monkeypatch, *arguments)
    said = capsys.readouterr().out
    assert '301 tensors used' in said and '5 entries dropped' in said
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, *arguments)
    assert '--overwrite' in capsys.readouterr().err
    weights.pop('rpn.head.conv.bias')
    torch.save(weights, tmp_path / 'published.pth')
    before = (tmp_path / 'new/out.pth').read_bytes()
    with pytest.raises(SystemExit, match='there is no rpn.head.conv.bias'):
        run_tool(monkeypatch, *arguments, '--overwrite')
    assert (tmp_path / 'new/out.pth').read_bytes() == before
