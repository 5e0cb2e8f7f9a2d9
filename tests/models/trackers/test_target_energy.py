"""The target-conditional energy model on a generated video."""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS

from mmdet_ebm.core import CAUTIOUS
from mmdet_ebm.models.trackers.target_energy_model import one_box_each
from mmdet_ebm.tracking import box_overlaps
from tests.small_trackers import tracker_model
from tests.tracking.videos import moving_square

METHODS = dict(
    NCEPlusLoss=dict(num_samples=8),
    NCELoss=dict(num_samples=8),
    MLISLoss=dict(num_samples=8),
    KLDISLoss=dict(num_samples=8),
    MLMCMCLoss=dict(num_samples=4, num_steps=2),
    DSMLoss=dict(num_samples=4),
    SMLoss=dict(),
)


def energy_model(loss=None, **options):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='TargetEnergyModel',
            in_channels=(6, 8),
            channels=8,
            featmap_strides=(4, 8),
            head=dict(fc_out_channels=16, act_cfg=dict(type='SiLU')),
            loss=loss or dict(type='NCEPlusLoss', num_samples=8),
            **options,
        )
    )
    model.init_weights()
    torch.nn.init.normal_(model.head.fc_logdensity.weight)
    return model


def maps(n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, c, s, s, generator=generator)
        for c, s in ((6, 16), (8, 8))
    ]


CORNERS = torch.tensor([[16.0, 20, 44, 40], [20.0, 10, 50, 50]])


@pytest.mark.parametrize('name', METHODS)
def test_every_method_trains_every_parameter(name):
    model = energy_model(dict(type=name, **METHODS[name]))
    losses = model.loss(maps(seed=0), CORNERS, maps(seed=1), CORNERS)
    losses['loss_energy'].backward()
    assert losses['loss_energy'].isfinite()
    without = [key for key, p in model.named_parameters() if p.grad is None]
    assert not without
    for key in ('modulator.weight', 'template_neck.laterals.0.weight'):
        gradient = model.get_parameter(key).grad
        assert gradient.abs().sum() > 0, key


def test_f_depends_on_the_template_and_on_its_own_frame_only():
    model = energy_model()
    boxes = one_box_each(CORNERS)

    def f(template_seed, search):
        modulation = model.modulation(maps(seed=template_seed), CORNERS)
        scene = model.scene(search, modulation)
        return model.corner_logdensity_fn(scene, boxes)(CORNERS[:, None])[:, 0]

    search = maps(seed=5)
    before = f(0, search)
    assert (f(1, search) - before).abs().min() > 1e-4
    for each in search:
        each[1] += 1
    after = f(0, search)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_candidates_are_pooled_from_all_levels():
    model = energy_model()
    modulation = model.modulation(maps(seed=0), CORNERS)
    fn = [
        model.corner_logdensity_fn(
            model.scene(search, modulation), one_box_each(CORNERS)
        )
        for search in (
            maps(seed=1),
            [maps(seed=2)[0], maps(seed=1)[1]],
            [maps(seed=1)[0], maps(seed=2)[1]],
        )
    ]
    plain, fine, coarse = (each(CORNERS[:, None]) for each in fn)
    assert (plain - fine).abs().min() > 1e-4
    assert (plain - coarse).abs().min() > 1e-4


def test_levels_must_be_as_many_as_strides():
    with pytest.raises(ValueError, match='as many in_channels'):
        MODELS.build(
            dict(
                type='TargetEnergyModel',
                in_channels=(6,),
                channels=8,
                featmap_strides=(4, 8),
                head=dict(),
                loss=dict(type='NCELoss'),
            )
        )


@pytest.fixture(scope='module')
def trained():
    """After a few steps on the pairs of one video."""
    torch.set_num_threads(1)
    from mmengine.registry import init_default_scope

    from mmdet_ebm.datasets.tracking import CropPair

    init_default_scope('mmdet')
    np.random.seed(0)
    model = tracker_model()
    model.energy_model.density.set_numbers(temperature=1.0, side_std=0.3)
    frames, boxes = moving_square(6)
    crop = CropPair(64, 2.5, shift=0.2)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        pairs = [
            crop.transform(dict(img=frames[[0, t]], boxes=boxes[[0, t]]))
            for t in np.random.choice(np.arange(1, 5), 4)
        ]
        corners = [
            torch.from_numpy(
                np.concatenate([p['gt_bboxes'][i] for p in pairs])
            )
            for i in (0, 1)
        ]
        inputs = torch.from_numpy(np.array([p['img'] for p in pairs]))
        data = model.data_preprocessor(
            dict(inputs=list(inputs.permute(0, 1, 4, 2, 3)), data_samples=None)
        )
        found = model._features(data['inputs'])
        losses = model.energy_model.loss(
            [m[0::2] for m in found],
            corners[0],
            [m[1::2] for m in found],
            corners[1],
        )
        optimiser.zero_grad()
        losses['loss_energy'].backward()
        optimiser.step()
    model.eval()
    return model, frames, boxes


def test_refined_boxes_overlap_more_with_the_target(trained):
    model, frames, boxes = trained
    template = model.template(frames[0], boxes[0])
    rng = np.random.default_rng(0)
    before, after = [], []
    for frame, box in zip(frames[1:], boxes[1:]):
        size = (box[2:] - box[:2]).repeat(2)
        shifted = box + rng.normal(0, 0.12, (8, 4)) * np.roll(size, 1)
        found = model.refine(frame, template, shifted)
        truth = np.tile(box, (8, 1))
        before.append(box_overlaps(shifted, truth))
        after.append(box_overlaps(found.boxes, truth))
    # 40 boxes; the mean IoU was 0.72 before.
    assert np.mean(after) > np.mean(before) + 0.05


def test_a_box_is_refined_alone_as_beside_others(trained):
    model, frames, boxes = trained
    template = model.template(frames[0], boxes[0])
    near = boxes[2] + [[0.0], [2.0], [-3.0]]
    together = model.refine(frames[2], template, near)
    alone = model.refine(frames[2], template, near[:1])
    np.testing.assert_allclose(alone.boxes[0], together.boxes[0], atol=0.05)


def test_boxes_stay_inside_the_frame_and_tell_how_sure_they_are(trained):
    model, frames, boxes = trained
    template = model.template(frames[0], boxes[0])
    edge = np.array([[-9.0, -5, 20, 18]])
    density = model.energy_model.density
    usual = density.numbers()
    try:  # wide enough for its samples
        density.set_numbers(temperature=20.0)
        found = model.refine(frames[1], template, edge, uncertainty=True)
    finally:
        density.set_numbers(**usual)
    height, width = frames[1].shape[:2]
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [width, height] * 2).all()
    assert found.std.shape == (1, 4)
    assert (found.std > 0).all()


def test_a_prior_that_is_sure_leaves_the_box(trained):
    model, frames, boxes = trained
    density = model.energy_model.density
    usual = density.numbers()
    template = model.template(frames[0], boxes[0])
    try:
        density.set_numbers(**{**CAUTIOUS, 'side_std': 1e-4})
        found = model.refine(frames[2], template, boxes[2:3] + 2)
    finally:
        density.set_numbers(**usual)
    np.testing.assert_allclose(found.boxes, boxes[2:3] + 2, atol=0.1)


def test_other_modes_than_training_are_refused():
    model = tracker_model()
    inputs = torch.zeros(1, 2, 3, 64, 64)
    assert len(model(inputs, None)) == 2
    with pytest.raises(ValueError, match='refine'):
        model(inputs, None, mode='predict')
