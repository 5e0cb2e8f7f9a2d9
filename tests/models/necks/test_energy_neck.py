"""A pyramid of the energy model's own: what it gives, and what it learns."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict

from mmdet_ebm.apis.checks import require_weights
from mmdet_ebm.models import EnergyNeck, Refinement
from mmdet_ebm.models import energy_model as module

from ...small_models import (
    METHODS,
    SIZES,
    batch,
    boxes,
    build,
    by_image,
    detect_everything,
    energy_model,
    feature_maps,
    head_cfg,
    mmdet_model_cfg,
    plain_cfg,
    results,
    wrapped,
)

# ----------------------------------------------------------- the neck itself


def unequal_maps(layout=torch.contiguous_format):
    """Of odd sizes, so that twice a coarse map is not the finer one."""
    return [
        torch.randn(2, c, h, w).contiguous(memory_format=layout)
        for c, h, w in ((3, 13, 10), (5, 7, 5), (4, 3, 3))
    ]


@pytest.fixture
def neck():
    neck = EnergyNeck((3, 5, 4), out_channels=6)
    neck.init_weights()
    return neck


def test_maps_of_one_width_in_the_sizes_of_the_given(neck):
    found = neck(unequal_maps())
    assert [m.shape for m in found] == [
        (2, 6, 13, 10),
        (2, 6, 7, 5),
        (2, 6, 3, 3),
    ]


def test_it_is_an_fpn(neck):
    """Laterals, the nearest coarser cell on top, 3x3 convolutions."""
    maps = unequal_maps()
    total, expected = None, []
    for lateral, output, m in list(zip(neck.laterals, neck.outputs, maps))[
        ::-1
    ]:
        side = lateral(m)
        if total is not None:
            rows = torch.arange(side.shape[2]) * total.shape[2]
            cols = torch.arange(side.shape[3]) * total.shape[3]
            side = (
                side
                + total[:, :, rows // side.shape[2]][
                    ..., cols // side.shape[3]
                ]
            )
        total = side
        expected.insert(0, F.conv2d(side, output.weight, output.bias, 1, 1))
    torch.testing.assert_close(neck(maps), expected)


def test_maps_stay_as_they_are_and_come_channels_last(neck):
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = unequal_maps(layout)
        before = copy.deepcopy(maps)
        found = neck(maps)
        assert all(map(torch.equal, maps, before))
        assert all(m.permute(0, 2, 3, 1).is_contiguous() for m in found)


def test_initial_weights_are_an_fpns(neck):
    weight = neck.outputs[0].weight
    limit = (6 / (2 * 9 * 6)) ** 0.5  # Xavier's, uniform
    assert 0.9 * limit < weight.abs().max() <= limit
    assert all((c.bias == 0).all() for c in (*neck.laterals, *neck.outputs))


def test_other_maps_are_refused(neck):
    for maps in (unequal_maps()[:2], unequal_maps()[::-1]):
        with pytest.raises(ValueError, match=r'expects .*\(3, 5, 4\)'):
            neck(maps)
    for channels in ((), (3, 0)):
        with pytest.raises(ValueError, match='positive'):
            EnergyNeck(channels)


# --------------------------------------------------- in the energy model


def model_with_neck(**changes):
    """Four channels go in and three come out."""
    neck = dict(type='EnergyNeck', in_channels=(4,) * 4, out_channels=3)
    return energy_model(
        **{'neck': neck, 'head': head_cfg(in_channels=3), **changes}
    )


def gradients(model, maps, counts=(2, 3)):
    """Of all parameters and maps, from the same noise each time."""
    corners, labels = by_image(boxes(maps[0].dtype))
    torch.manual_seed(1)
    model.zero_grad()
    for m in maps:
        m.grad = None
    loss = model.loss(
        maps,
        [c[:n] for c, n in zip(corners, counts)],
        [x[:n] for x, n in zip(labels, counts)],
        SIZES,
    )['loss_energy']
    loss.backward()
    named = {n: p.grad for n, p in model.named_parameters()}
    return {'loss': loss.detach(), **named} | {
        f'maps {i}': m.grad for i, m in enumerate(maps) if m.requires_grad
    }


def test_the_width_of_the_head_follows_the_neck():
    head = head_cfg()
    del head['in_channels']
    assert model_with_neck(head=head).head.in_shape == (3, 7, 7)
    with pytest.raises(ValueError, match='gives 3 channels and .* is 4'):
        model_with_neck(head=head_cfg(in_channels=4))
    with pytest.raises(ValueError, match='takes 4 maps'):
        model_with_neck(featmap_strides=(4, 8))


@pytest.mark.parametrize('chunked', [False, True])
@pytest.mark.parametrize('counts', [(2, 3), (0, 3), (0, 0)])
@pytest.mark.parametrize('method', METHODS)
def test_every_weight_gets_a_gradient(method, counts, chunked):
    """One without would halt distributed training."""
    options = {} if method == 'SMLoss' else dict(num_samples=4)
    model = model_with_neck(loss=dict(type=method, **options), chunked=chunked)
    grads = gradients(model, feature_maps(), counts)
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    moved = (grads['neck.laterals.0.weight'] != 0).any()
    assert moved == (sum(counts) > 0)


@pytest.mark.parametrize('unfrozen', [False, True])
def test_chunks_give_the_gradients_of_the_whole_batch(unfrozen, monkeypatch):
    """In the neck, in the head, and in maps that learn; from a method
    without randomness."""
    monkeypatch.setattr(module, 'CANDIDATES_PER_CHUNK', 2)
    model = model_with_neck(loss=dict(type='SMLoss')).double()
    maps = [m.double().requires_grad_(unfrozen) for m in feature_maps()]
    found = []
    for model.chunked in (False, True):
        found.append(gradients(model, maps))
    assert ('maps 0' in found[0]) == unfrozen
    torch.testing.assert_close(*found)


def test_chunks_give_the_neck_its_share_of_the_backward_factor():
    model = model_with_neck(loss=dict(type='SMLoss')).double()
    maps = [m.double() for m in feature_maps()]
    grads = []
    for model.chunked in (False, True):
        loss = model.loss(maps, *by_image(boxes(torch.float64)), SIZES)
        (grad,) = torch.autograd.grad(
            3 * loss['loss_energy'], model.neck.outputs[1].weight
        )
        grads.append(grad)
    torch.testing.assert_close(*grads)


def test_an_image_without_objects_costs_no_chunk_of_its_own(monkeypatch):
    """Objects of several images share chunks, although maps learn."""
    seen = []
    pool = module.FeaturePyramid.pool

    def watched(self, corners, *args):
        seen.append((len(corners), self.num_images))
        return pool(self, corners, *args)

    monkeypatch.setattr(module.FeaturePyramid, 'pool', watched)
    monkeypatch.setattr(module, 'CANDIDATES_PER_CHUNK', 4 * 9)
    model = model_with_neck(chunked=True)
    gradients(model, feature_maps())
    assert seen == [(36, 2), (9, 1)]


@pytest.mark.parametrize(
    'context', [torch.no_grad, torch.inference_mode, torch.enable_grad]
)
def test_boxes_are_refined_in_every_mode(context):
    model = model_with_neck()
    with torch.no_grad():
        expected = model.refine(model.pyramid(feature_maps(), SIZES), boxes())
    with context():
        maps = [m + 0 for m in feature_maps()]
        pyramid = model.pyramid(maps, SIZES)
        refined = model.refine(pyramid, boxes())
        f = model.logdensity(pyramid, boxes())
    assert not f.requires_grad
    torch.testing.assert_close(refined.corners, expected.corners)
    assert not torch.allclose(refined.corners, boxes().corners)


def test_a_lower_precision_is_the_heads_alone():
    model = model_with_neck()
    pyramid = model.pyramid(feature_maps(), SIZES)
    exact = model.logdensity(pyramid, boxes())
    model.inference_dtype = torch.bfloat16
    with torch.no_grad():
        low = model.pyramid(feature_maps(), SIZES)
    assert low.dtype == torch.float32
    assert torch.equal(
        model.logdensity(low, boxes()), model.logdensity(pyramid, boxes())
    )
    rounded = model.logdensity(low, boxes())
    assert 0 < (exact - rounded).norm() < 0.05 * exact.norm()


# ------------------------------------------------------ behind detectors


def with_neck(detector, energy=None, **changes):
    neck = dict(type='EnergyNeck', out_channels=8)
    return detect_everything(
        wrapped(detector, {'neck': neck, **(energy or {})}, **changes)
    )


def small_cfg(family):
    if family == 'YOLOX':
        cfg = copy.deepcopy(
            mmdet_model_cfg('yolox/yolox_nano_8xb8-300e_coco.py')
        )
        cfg.data_preprocessor.batch_augments = None
        return cfg
    if family == 'YOLOv3':
        cfg = copy.deepcopy(
            mmdet_model_cfg('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py')
        )
        cfg.backbone.init_cfg = None
        return cfg
    return plain_cfg(family)


STRIDES = {
    'Faster R-CNN': (4, 8, 16, 32),
    'RetinaNet': (4, 8, 16, 32),
    'ATSS': (4, 8, 16, 32),
    'YOLOX': (4, 8, 16, 32),
    'YOLOv3': (4, 8, 16, 32),
    'Deformable DETR': (4, 8, 16, 32),
    'DETR': (4, 8, 16, 32),
}


@pytest.mark.parametrize('family', STRIDES)
def test_every_family_learns_with_it_and_stays_as_it_was(family):
    """Its outputs without any stage are the same, bit by bit."""
    model = with_neck(small_cfg(family))
    assert model.energy_model.featmap_strides == STRIDES[family]
    assert model.energy_model.head.in_shape[0] == 8
    stages = model.refinement
    inputs, samples = batch(num_classes=80)
    model.refinement = Refinement(energy_nms=False, ascent=False)
    before = results(model, inputs, samples)
    state = copy.deepcopy(model.state_dict())

    model.train()
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.01
    )
    for _ in range(2):
        loss = model.loss(inputs, copy.deepcopy(samples))['loss_energy']
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    learned = {
        k for k, v in model.state_dict().items() if not v.equal(state[k])
    }
    assert all(k.startswith('energy_model.') for k in learned)
    assert any(k.startswith('energy_model.neck.laterals.0') for k in learned)
    assert any(k.startswith('energy_model.neck.outputs.0') for k in learned)
    for ours, theirs in zip(
        results(model, inputs, samples), before, strict=True
    ):
        assert len(ours) > 0
        assert all(ours[k].equal(theirs[k]) for k in theirs.keys())

    model.refinement = stages
    for result in results(model, inputs, samples):
        assert not torch.equal(result.bboxes, result.initial_bboxes)


def test_maps_of_the_encoder_and_the_finer_stage():
    model = with_neck(plain_cfg('Deformable DETR'), features='encoder')
    assert model.energy_model.neck.in_channels == (4, 256, 256, 256)
    loss = model.train().loss(*batch(num_classes=80))['loss_energy']
    loss.backward()
    assert loss > 0
    assert all(len(r) > 0 for r in results(model, *batch()))


def test_joint_training_reaches_the_backbone_through_it():
    cfg = plain_cfg('RetinaNet')
    cfg.backbone.frozen_stages = -1
    model = with_neck(cfg, freeze_detector=False).train()
    for model.energy_model.chunked in (False, True):
        model.zero_grad()
        losses = model.loss(*batch(num_classes=80))
        assert {'loss_energy', 'loss_cls'} <= set(losses)
        losses['loss_energy'].backward()
        for part in (model.detector.backbone.layer1, model.detector.neck):
            grads = [p.grad for p in part.parameters() if p.requires_grad]
            assert any(g is not None and (g != 0).any() for g in grads)


def test_levels_can_be_chosen():
    model = with_neck(plain_cfg('RetinaNet'), dict(featmap_strides=(8, 16)))
    assert model.energy_model.neck.in_channels == (64, 64)
    assert model.train().loss(*batch(num_classes=80))['loss_energy'] > 0
    model = with_neck(
        plain_cfg('RetinaNet'),
        dict(
            featmap_strides=(8, 16),
            neck=dict(type='EnergyNeck', in_channels=(64, 64)),
        ),
    )
    assert model.recorder.levels is None  # nothing was measured
    assert model.train().loss(*batch(num_classes=80))['loss_energy'] > 0


@pytest.mark.parametrize(
    'energy, message',
    [
        (dict(featmap_strides=(2, 4)), r'\(4, 8, 16, .* is \(2, 4\)'),
        (dict(featmap_strides=(8, 4)), 'some of them, rising'),
        (
            dict(neck=dict(type='EnergyNeck', in_channels=(1, 2))),
            r'\(4, 64, 64, 64\) channels and .*in_channels is \(1, 2\)',
        ),
    ],
)
def test_other_levels_are_refused(energy, message):
    with pytest.raises(ValueError, match=message):
        with_neck(plain_cfg('RetinaNet'), energy)


# ------------------------------------------------------------ checkpoints


def saved(model, path):
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def test_checkpoints_hold_the_neck(tmp_path):
    cfg = plain_cfg('RetinaNet')
    plain, without = build(cfg), wrapped(cfg)
    model = with_neck(cfg)
    keys = [k for k in model.state_dict() if '.neck.' in k]
    own = [k for k in keys if k.startswith('energy_model.neck.')]
    assert len(own) == 2 * 2 * 4
    require_weights(model, saved(model, tmp_path / 'ours.pth'))
    require_weights(
        model, saved(plain, tmp_path / 'plain.pth'), energy='optional'
    )
    require_weights(without, saved(without, tmp_path / 'without.pth'))
    with pytest.raises(ValueError, match='energy_model'):
        require_weights(model, tmp_path / 'without.pth')


def test_a_copy_gives_the_same():
    model = with_neck(plain_cfg('ATSS'))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = with_neck(plain_cfg('ATSS'))
    other.load_state_dict(torch.load(buffer))
    inputs, samples = batch()
    for one, two in zip(
        results(model, inputs, samples), results(other, inputs, samples)
    ):
        assert torch.equal(one.bboxes, two.bboxes)


def test_a_neck_of_ones_own_is_taken():
    cfg = ConfigDict(neck=dict(type='EnergyNeck', out_channels=4))
    model = with_neck(plain_cfg('FCOS'), cfg)
    assert model.energy_model.head.in_shape[0] == 4
    maps = [m.detach() for m in model.recorder.run(*batch())]
    with pytest.raises(ValueError, match='the neck of the energy model'):
        model.energy_model.pyramid(maps[1:])
