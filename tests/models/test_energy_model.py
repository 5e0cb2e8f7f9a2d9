"""The energy model: f, its levels, and boxes that climb it."""

import pytest
import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

from mmdet_ebm.models import energy_model as module
from mmdet_ebm.ops import (
    Boxes,
    PrRoIPool,
    boxes_to_relative,
    relative_to_boxes,
)

from ..small_models import (
    SIZES,
    STRIDES,
    boxes,
    by_image,
    energy_model,
    feature_maps,
    head_cfg,
    no_boxes,
)

LONG_STEPS = dict(step_length=(0.003, 0.003))


def of_one_image(corners, labels=None):
    labels = [0] * len(corners) if labels is None else labels
    return Boxes.from_images([torch.tensor(corners)], [torch.tensor(labels)])


def pooled_by(model):
    """A list that fills with what the head gets."""
    seen = []
    model.head.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    return seen


# ------------------------------------------------------------------------- f


def test_relative_origin_is_the_box_itself():
    model, reference = energy_model(), boxes()
    pyramid = model.pyramid(feature_maps(), SIZES)
    at_origin = model.logdensity_fn(pyramid, reference)(torch.zeros(5, 1, 4))
    torch.testing.assert_close(
        at_origin[:, 0], model.logdensity(pyramid, reference)
    )


def test_candidates_equal_boxes_evaluated_one_by_one():
    model, reference = energy_model(), boxes()
    pyramid = model.pyramid(feature_maps(), SIZES)
    relative = torch.randn(5, 3, 4) * 0.05
    values = model.logdensity_fn(pyramid, reference)(relative)
    corners = relative_to_boxes(relative, reference.corners[:, None])
    for sample in range(3):
        moved = Boxes(
            corners[:, sample],
            reference.labels,
            reference.image_index,
            reference.counts,
        )
        torch.testing.assert_close(
            values[:, sample],
            model.logdensity(pyramid, moved),
            rtol=1e-4,
            atol=1e-4,
        )


def test_gradients_in_the_box_through_the_whole_model():
    """Decoding, levels, pooling and head against finite differences."""
    model = energy_model().double()
    maps = [m.double() for m in feature_maps()]
    logdensity = model.logdensity_fn(
        model.pyramid(maps, SIZES), boxes(torch.float64)
    )
    relative = (
        torch.randn(5, 1, 4, dtype=torch.float64) * 0.05
    ).requires_grad_()
    assert torch.autograd.gradcheck(logdensity, (relative,))
    assert torch.autograd.gradgradcheck(logdensity, (relative,))


def test_many_boxes_are_evaluated_in_chunks_of_bounded_size():
    """1500 boxes: the head never sees more than a chunk, values are equal."""
    model = energy_model()
    corner = torch.rand(1500, 2) * 60
    many = Boxes.from_images(
        [torch.cat([corner, corner + 20], 1)], [torch.randint(3, (1500,))]
    )
    pyramid = model.pyramid(feature_maps(images=1), SIZES[:1])
    seen = pooled_by(model)
    values = model.logdensity(pyramid, many)
    sizes = [len(pooled) for pooled in seen]
    assert sum(sizes) == 1500 and max(sizes) <= module.BOXES_PER_CHUNK == 512
    rows = torch.tensor([0, 511, 512, 1499])
    torch.testing.assert_close(
        values[rows], model.logdensity(pyramid, many.rows(rows))
    )


# -------------------------------------------------------------------- levels


def test_boxes_are_pooled_as_mmdets_extractor_does_with_the_same_layer():
    """Levels and values agree, at every scale."""
    theirs = SingleRoIExtractor(
        dict(type=PrRoIPool, output_size=7), 4, STRIDES
    )
    sides = torch.tensor([3.0, 20.0, 111.0, 113.0, 230.0, 500.0, 1000.0])
    corner = torch.rand(7, 2) * 40 - 10
    corners = torch.cat([corner, corner + sides[:, None]], 1)
    image = torch.randint(2, (7,))
    model, maps = energy_model(), feature_maps()
    pyramid, seen = model.pyramid(maps), pooled_by(model)
    reference = Boxes(corners, torch.zeros(7).long(), image, (7,))
    model.logdensity(pyramid, reference)
    rois = torch.cat([image[:, None].to(corners), corners], 1)
    torch.testing.assert_close(seen[0], theirs(maps, rois))
    assert torch.equal(
        pyramid.map_levels(corners), theirs.map_roi_levels(rois, 4)
    )


def test_levels_of_degenerate_boxes_are_valid():
    corners = torch.tensor(
        [
            [0, 0, 0, 0],
            [5, 5, 1, 1],
            [0, 0, torch.nan, 3],
            [0, 0, torch.inf, 3],
        ]
    )
    level = energy_model().pyramid(feature_maps()).map_levels(corners)
    assert ((level >= 0) & (level <= 3)).all()


def test_a_given_finest_scale_moves_the_levels():
    corners = torch.tensor([[0.0, 0, 30, 30]])  # below 112, above twice 10
    for scale, level in ((None, 0), (10, 1)):
        pyramid = energy_model(finest_scale=scale).pyramid(feature_maps())
        assert pyramid.map_levels(corners).tolist() == [level]


def test_levels_beyond_the_strides_are_left_alone():
    model = energy_model(featmap_strides=STRIDES[:2])
    maps = feature_maps()
    both, reference = model.pyramid(maps, SIZES), boxes()
    two = model.pyramid(maps[:2], SIZES)
    assert torch.equal(
        model.logdensity(both, reference), model.logdensity(two, reference)
    )


def test_missing_levels_and_other_channels_are_named():
    model = energy_model()
    with pytest.raises(ValueError, match='4 levels.*gives 3'):
        model.pyramid(feature_maps()[:3])
    with pytest.raises(ValueError, match='4 channels.*gives 5'):
        model.pyramid([torch.zeros(1, 5, 24, 24)] * 4)


def test_level_is_fixed_unless_the_published_way_is_asked_for():
    """A box of 111 pixels grows by a tenth: level 0 stays, or becomes 1."""
    reference = of_one_image([[0.0, 0, 111, 111]])
    grown = torch.tensor([[[0.0, 0, 0.1, 0.1]]])
    maps = [
        torch.full((1, 4, 128 // s, 128 // s), float(i))
        for i, s in enumerate(STRIDES)
    ]
    for fix_level, level in ((True, 0), (False, 1)):
        model = energy_model(fix_level=fix_level)
        seen = pooled_by(model)
        model.logdensity_fn(model.pyramid(maps), reference)(grown)
        assert seen[0][..., 2, 2].mean() == level


# ---------------------------------------------------------------- refinement


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_refined_boxes_have_a_larger_log_density(mode):
    model, reference = energy_model(ascent=LONG_STEPS), boxes()
    with mode():
        pyramid = model.pyramid(feature_maps(), SIZES)
        refined = model.refine(pyramid, reference)
    assert (refined.logdensity > refined.info.logdensities[0]).all()
    assert (refined.info.num_accepted > 0).all()
    assert not refined.corners.requires_grad
    shift = boxes_to_relative(refined.corners, reference.corners)
    assert (shift.abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize('kind', ['BoxAscent', 'IoUNetAscent'])
def test_the_trajectory_leads_from_the_start_to_the_result(kind):
    model, reference = energy_model(ascent=dict(type=kind)), boxes()
    # Without image sizes nothing is clipped.
    refined = model.refine(model.pyramid(feature_maps()), reference)
    path = refined.info.trajectory
    assert path.shape == (model.ascent.num_steps + 1, 5, 4)
    torch.testing.assert_close(path[0], reference.corners)
    torch.testing.assert_close(path[-1], refined.corners)
    assert refined.info.logdensities.shape == path.shape[:2]
    assert torch.equal(refined.info.logdensities[-1], refined.logdensity)
    assert refined.info.num_accepted.shape == (5,)


def test_the_trajectory_is_not_clipped():
    """The result is; f is that of the unclipped box."""
    model = energy_model(ascent=dict(num_steps=0))
    pyramid = model.pyramid(feature_maps(), SIZES)
    outside = Boxes.from_images(
        [torch.tensor([[-9.0, -9, 200, 200]])] * 2, [torch.tensor([0])] * 2
    )
    refined = model.refine(pyramid, outside)
    assert refined.corners.tolist() == [[0, 0, 96, 96], [0, 0, 64, 80]]
    torch.testing.assert_close(refined.info.trajectory[0], outside.corners)
    torch.testing.assert_close(
        refined.logdensity, model.logdensity(pyramid, outside)
    )


@pytest.mark.parametrize(
    'layout', [torch.contiguous_format, torch.channels_last]
)
def test_refinement_works_on_maps_made_in_inference_mode(layout):
    model, reference = energy_model(), boxes()
    expected = model.refine(model.pyramid(feature_maps(), SIZES), reference)
    with torch.inference_mode():
        maps = [m.clone(memory_format=layout) for m in feature_maps()]
        copies = Boxes(
            reference.corners.clone(),
            reference.labels.clone(),
            reference.image_index.clone(),
            reference.counts,
        )
        refined = model.refine(model.pyramid(maps, SIZES), copies)
    torch.testing.assert_close(refined.corners, expected.corners)


def test_an_image_is_refined_as_if_it_were_alone():
    """Batched with another and padded: the same boxes."""
    model = energy_model(ascent=dict(step_length=(0.01, 0.01)))
    reference, maps = boxes(), feature_maps()
    together = model.refine(model.pyramid(maps, SIZES), reference)
    # Alone, the second image (80 x 64) needs maps of 20 x 16 cells and so on.
    crops = [
        m[1:, :, : -(-80 // s), : -(-64 // s)] for m, s in zip(maps, STRIDES)
    ]
    alone = Boxes.from_images([reference.corners[2:]], [reference.labels[2:]])
    refined = model.refine(model.pyramid(crops, SIZES[1:]), alone)
    torch.testing.assert_close(refined.corners, together.corners[2:])


@pytest.mark.parametrize('kind', ['BoxAscent', 'IoUNetAscent'])
def test_tiny_boxes_are_not_moved(kind):
    model = energy_model(min_box_size=4.0, ascent=dict(type=kind))
    tiny = of_one_image(
        [[10.1, 10.3, 12.6, 40.7], [20.2] * 4, [10.1, 10.3, 40.7, 40.9]]
    )
    pyramid = model.pyramid(feature_maps(images=1), SIZES[:1])
    refined = model.refine(pyramid, tiny)
    assert torch.equal(refined.corners[:2], tiny.corners[:2])
    assert not torch.allclose(refined.corners[2], tiny.corners[2])
    assert (refined.info.num_accepted > 0).tolist() == [False, False, True]


def test_no_detections():
    model = energy_model()
    pyramid = model.pyramid(feature_maps(), SIZES)
    assert model.logdensity(pyramid, no_boxes()).shape == (0,)
    refined = model.refine(pyramid, no_boxes())
    assert refined.corners.shape == (0, 4) and refined.logdensity.numel() == 0


def test_iou_nets_ascent_moves_corners_by_their_sides_times_the_gradient():
    model = energy_model(
        ascent=dict(type='IoUNetAscent', num_steps=1, step_length=0.3)
    )
    start = boxes()
    pyramid = model.pyramid(feature_maps())
    corners = start.corners.clone().requires_grad_()
    f = model.corner_logdensity_fn(pyramid, start)(corners[:, None])
    (gradient,) = torch.autograd.grad(f.sum(), corners)
    sides = (start.corners[:, 2:] - start.corners[:, :2]).repeat(1, 2)
    refined = model.refine(pyramid, start)
    torch.testing.assert_close(
        refined.corners, start.corners + 0.3 * sides * gradient
    )


def test_the_ascent_can_be_changed_after_construction():
    model = energy_model()
    pyramid = model.pyramid(feature_maps(), SIZES)
    model.ascent.num_steps = 7
    assert len(model.refine(pyramid, boxes()).info.trajectory) == 8


# -------------------------------------------------------- precision, settings


def test_products_in_bfloat16_move_boxes_alike():
    """Ordering and ascent; the weights themselves stay."""
    model, reference = energy_model(ascent=LONG_STEPS), boxes()
    low = energy_model(ascent=LONG_STEPS, inference_dtype='bfloat16')
    low.load_state_dict(model.state_dict())
    pyramid = model.pyramid(feature_maps(), SIZES)
    exact, found = (
        (each.logdensity(pyramid, reference), each.refine(pyramid, reference))
        for each in (model, low)
    )
    assert found[0].dtype == found[1].corners.dtype == torch.float32
    assert not torch.equal(found[0], exact[0])
    torch.testing.assert_close(found[0], exact[0], rtol=0.05, atol=0.05)
    shift = [r.corners - reference.corners for r in (found[1], exact[1])]
    assert (shift[0] - shift[1]).abs().mean() < 0.1 * shift[1].abs().mean()
    assert all(p.dtype == torch.float32 for p in low.parameters())


@pytest.mark.parametrize(
    'wrong, message',
    [
        (dict(inference_dtype='int8'), "inference_dtype must be 'bfloat16'"),
        (dict(ascent=dict(step_length=(0.1,))), 'step_length'),
        (dict(ascent=dict(step_rule='newton')), 'step_rule'),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        energy_model(**wrong)


@pytest.mark.parametrize(
    'activation', ['ReLU', 'LeakyReLU', 'PReLU', 'ReLU6', 'HSwish']
)
@pytest.mark.parametrize(
    'needs, name',
    [
        (dict(loss=dict(type='SMLoss')), 'SMLoss'),
        (dict(uncertainty=dict(method='laplace')), "method='laplace'"),
    ],
)
def test_second_derivatives_are_refused_for_a_head_with_kinks(
    activation, needs, name
):
    with pytest.raises(ValueError, match=f'{name} needs second derivatives'):
        energy_model(head=head_cfg(act_cfg=dict(type=activation)), **needs)


@pytest.mark.parametrize('activation', ['SiLU', 'GELU', 'Tanh', 'ELU'])
def test_score_matching_takes_a_smooth_head(activation):
    model = energy_model(
        loss=dict(type='SMLoss'),
        head=head_cfg(act_cfg=dict(type=activation)),
        uncertainty=dict(method='laplace'),
    )
    model.loss(feature_maps(), *by_image(boxes()), SIZES)[
        'loss_energy'
    ].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
