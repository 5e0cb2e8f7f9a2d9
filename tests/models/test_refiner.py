"""The detector-agnostic refiner: contract, levels, clipping, small boxes."""

import pytest
import torch

from mmdet_ebm.models import Boxes, EnergyRefiner, IoUNetRefiner
from mmdet_ebm.ops import boxes_to_relative, relative_to_boxes

SIZES = [(96, 96), (80, 64)]


def refiner(kind=EnergyRefiner, **kwargs):
    options = dict(
        roi_extractor=dict(type='PreciseRoIExtractor', out_channels=4),
        head=dict(
            type='EnergyHead',
            num_classes=3,
            in_channels=4,
            fc_out_channels=16,
            act_cfg=dict(type='SiLU'),
        ),
        loss=dict(type='NCEPlusLoss', num_samples=8),
    )
    model = kind(**{**options, **kwargs})
    model.init_weights()
    torch.nn.init.normal_(model.head.fc_logdensity.weight)
    return model.eval()


def features(seed=0, images=2):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(images, 4, 96 // s, 96 // s, generator=generator)
        for s in (4, 8, 16, 32)
    ]


def boxes():
    first = torch.tensor([[10.0, 12, 40, 50], [60.0, 60, 95, 95]])
    second = torch.tensor(
        [[5.0, 5, 30, 28], [20.0, 30, 60, 75], [1.0, 40, 20, 44]]
    )
    return Boxes.from_images(
        [first, second], [torch.tensor([0, 2]), torch.tensor([1, 1, 0])]
    )


def test_boxes_of_images_are_joined_and_split():
    joined = boxes()
    assert joined.image_index.tolist() == [0, 0, 1, 1, 1]
    (first,), (second,) = joined.split(joined.labels)
    assert first.tolist() == [0, 2] and second.tolist() == [1, 1, 0]


def test_relative_origin_is_the_box_itself():
    model, reference = refiner(), boxes()
    surface = model.surface(features(), SIZES)
    at_origin = model.logdensity_fn(surface, reference)(torch.zeros(5, 1, 4))
    torch.testing.assert_close(
        at_origin[:, 0], model.logdensity(surface, reference)
    )


def test_candidates_equal_boxes_evaluated_one_by_one():
    model, reference = refiner(), boxes()
    surface = model.surface(features(), SIZES)
    relative = torch.randn(5, 3, 4) * 0.05
    values = model.logdensity_fn(surface, reference)(relative)
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
            model.logdensity(surface, moved),
            rtol=1e-4,
            atol=1e-4,
        )


def test_gradients_in_the_box_through_the_whole_model():
    """Decoding, levels, pooling and head against finite differences."""
    model = refiner().double()
    reference = boxes()
    reference = Boxes(
        reference.corners.double() + 0.123,
        reference.labels,
        reference.image_index,
        reference.counts,
    )
    surface = model.surface([f.double() for f in features()], SIZES)
    logdensity = model.logdensity_fn(surface, reference)
    relative = (
        torch.randn(5, 1, 4, dtype=torch.float64) * 0.05
    ).requires_grad_()
    assert torch.autograd.gradcheck(logdensity, (relative,))
    assert torch.autograd.gradgradcheck(logdensity, (relative,))


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_refined_boxes_have_a_larger_log_density(mode):
    model, reference = refiner(step_length=(0.003, 0.003)), boxes()
    with mode():
        surface = model.surface(features(), SIZES)
        refined = model.refine(surface, reference, SIZES)
    moved = refined.logdensity > refined.initial_logdensity
    assert moved.all() and (refined.num_accepted > 0).all()
    assert not refined.corners.requires_grad
    shift = boxes_to_relative(refined.corners, reference.corners)
    assert (shift.abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize(
    'layout', [torch.contiguous_format, torch.channels_last]
)
def test_refinement_works_on_features_made_in_inference_mode(layout):
    model, reference = refiner(), boxes()
    expected = model.refine(
        model.surface(features(), SIZES), reference, SIZES
    ).corners
    with torch.inference_mode():
        maps = [f.clone() for f in features()]
        inference_boxes = Boxes(
            *(
                t.clone()
                for t in (
                    reference.corners,
                    reference.labels,
                    reference.image_index,
                )
            ),
            reference.counts,
        )
        refined = model.refine(
            model.surface(maps, SIZES), inference_boxes, SIZES
        )
    torch.testing.assert_close(refined.corners, expected)


def test_an_image_is_refined_as_if_it_were_alone():
    """Batched with another and padded: the same boxes."""
    model, reference = refiner(step_length=(0.01, 0.01)), boxes()
    maps = features()
    together = model.refine(model.surface(maps, SIZES), reference, SIZES)
    # Alone, the second image (80 x 64) needs maps of 20 x 16 cells and so on.
    crops = [
        f[1:, :, : -(-80 // s), : -(-64 // s)]
        for f, s in zip(maps, (4, 8, 16, 32))
    ]
    alone = Boxes.from_images([reference.corners[2:]], [reference.labels[2:]])
    refined = model.refine(model.surface(crops, SIZES[1:]), alone, SIZES[1:])
    torch.testing.assert_close(refined.corners, together.corners[2:])


def test_refined_boxes_are_clipped_to_their_own_image():
    model = refiner(step_length=(0.0, 0.0))
    outside = torch.tensor([[-9.0, -9, 200, 200]])
    reference = Boxes.from_images(
        [outside, outside], [torch.tensor([0]), torch.tensor([0])]
    )
    refined = model.refine(model.surface(features(), SIZES), reference, SIZES)
    assert refined.corners.tolist() == [[0, 0, 96, 96], [0, 0, 64, 80]]


def test_tiny_boxes_are_neither_moved_nor_trained_on():
    model = refiner(min_box_size=4.0)
    tiny = torch.tensor([[10.0, 10, 13, 40], [20.0, 20, 20, 20]])
    labels = torch.tensor([0, 1])
    reference = Boxes.from_images([tiny, tiny[:0]], [labels, labels[:0]])
    refined = model.refine(model.surface(features(), SIZES), reference, SIZES)
    assert torch.equal(refined.corners, tiny)
    assert refined.num_accepted.tolist() == [0, 0]
    loss = model.loss(
        features(), [tiny, tiny[:0]], [labels, labels[:0]], SIZES
    )['loss_energy']
    assert loss == 0


def test_loss_averages_over_the_objects_that_count():
    """Losses 0 to 4 of five objects and 5 of a tiny one: (0 + .. + 4) / 5."""

    class Numbered(torch.nn.Module):
        def forward(self, logdensity_fn, targets):
            return torch.arange(len(targets), dtype=targets.dtype)

    reference = boxes()
    tiny = torch.tensor([[3.0, 3, 4, 4]])
    corners = [reference.corners[:2], torch.cat([reference.corners[2:], tiny])]
    labels = [reference.labels[:2], reference.labels[[2, 3, 4, 4]]]
    for reduction, expected in (('mean', 2.0), ('sum', 10.0)):
        model = refiner(loss=dict(type='NCELoss', reduction=reduction))
        model.loss_energy.method = Numbered()
        loss = model.loss(features(), corners, labels, SIZES)['loss_energy']
        assert loss.item() == pytest.approx(expected)


METHODS = (
    'NCEPlusLoss',
    'NCELoss',
    'MLISLoss',
    'KLDISLoss',
    'MLMCMCLoss',
    'SMLoss',
    'DSMLoss',
    'LocalizationConfidenceLoss',
)


@pytest.mark.parametrize('loss', METHODS)
def test_no_objects_give_a_zero_loss_with_a_graph(loss):
    model = refiner(loss=dict(type=loss))
    none = [torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2
    loss = model.loss(features(), *none, SIZES)['loss_energy']
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize('loss', METHODS)
def test_an_image_without_objects_does_not_change_the_loss(loss):
    model = refiner(loss=dict(type=loss))
    corners, labels = zip(*boxes().split(boxes().corners, boxes().labels))
    losses = []
    for images in (2, 3):
        torch.manual_seed(0)
        maps = [torch.cat([f, f])[:images] for f in features()]
        empty = images - 2
        losses.append(
            model.loss(
                maps,
                list(corners) + [torch.zeros(0, 4)] * empty,
                list(labels) + [torch.zeros(0).long()] * empty,
                SIZES + SIZES[:1] * empty,
            )['loss_energy']
        )
    assert losses[0] != 0
    torch.testing.assert_close(losses[0], losses[1])


def test_no_detections():
    model = refiner()
    none = Boxes.from_images(
        [torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2
    )
    surface = model.surface(features(), SIZES)
    assert model.logdensity(surface, none).shape == (0,)
    assert model.refine(surface, none, SIZES).corners.shape == (0, 4)


def test_training_gradients_reach_every_parameter():
    model = refiner()
    reference = boxes()
    loss = model.loss(
        features(),
        [reference.corners[:2], reference.corners[2:]],
        [reference.labels[:2], reference.labels[2:]],
        SIZES,
    )
    loss['loss_energy'].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_level_is_fixed_unless_the_published_way_is_asked_for():
    """A box of 111 pixels grows by a tenth: level 0 stays, or becomes 1."""
    reference = Boxes.from_images(
        [torch.tensor([[0.0, 0, 111, 111]])], [torch.tensor([0])]
    )
    grown = torch.tensor([[[0.0, 0, 0.1, 0.1]]])
    maps = [
        torch.full((1, 4, 128 // s, 128 // s), float(i))
        for i, s in enumerate((4, 8, 16, 32))
    ]
    values = {}
    for fix_level in (True, False):
        model = refiner(fix_level=fix_level)
        seen = []
        model.head.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0])
        )
        model.logdensity_fn(model.surface(maps), reference)(grown)
        values[fix_level] = seen[0][..., 2, 2].mean().item()
    assert values == {True: 0.0, False: 1.0}


def test_many_boxes_are_evaluated_in_chunks_of_bounded_size():
    """5000 boxes: the head never sees more than a chunk, values are equal."""
    model = refiner()
    corner = torch.rand(5000, 2) * 60
    many = Boxes.from_images(
        [torch.cat([corner, corner + 20], 1)], [torch.randint(3, (5000,))]
    )
    surface = model.surface(features(images=1), SIZES[:1])
    seen = []
    hook = model.head.register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]))
    )
    values = model.logdensity(surface, many)
    hook.remove()
    assert sum(seen) == 5000 and max(seen) <= 2048
    rows = torch.tensor([0, 2047, 2048, 4999])
    few = Boxes(
        many.corners[rows], many.labels[rows], many.image_index[rows], (4,)
    )
    torch.testing.assert_close(values[rows], model.logdensity(surface, few))


def test_under_autocast_pooling_and_loss_stay_in_float32():
    model, reference = refiner(), boxes()
    seen = []
    model.head.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].dtype)
    )
    with torch.autocast('cpu', torch.bfloat16):
        loss = model.loss(
            [f.bfloat16() for f in features()],
            [reference.corners[:2], reference.corners[2:]],
            [reference.labels[:2], reference.labels[2:]],
            SIZES,
        )['loss_energy']
    loss.backward()
    assert seen == [torch.float32] and loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_wrong_step_lengths_are_named():
    with pytest.raises(ValueError, match='step_length'):
        refiner(step_length=(0.1,))


def test_iou_nets_ascent_moves_corners_by_their_sides_times_the_gradient():
    model = refiner(IoUNetRefiner, num_steps=1, step_length=0.3)
    start = boxes()
    surface = model.surface(features(), SIZES)
    corners = start.corners.clone().requires_grad_()
    f = model.corner_logdensity_fn(surface, start)(corners[:, None])
    (gradient,) = torch.autograd.grad(f.sum(), corners)
    sides = (start.corners[:, 2:] - start.corners[:, :2]).repeat(1, 2)
    expected = start.corners + 0.3 * sides * gradient
    refined = model.refine(surface, start, SIZES)
    inside = torch.tensor([96.0, 96, 96, 96]), torch.tensor([64.0, 80, 64, 80])
    limit = torch.stack(inside)[start.image_index]
    torch.testing.assert_close(
        refined.corners, expected.clamp(min=0).minimum(limit)
    )
    torch.testing.assert_close(refined.initial_logdensity, f[:, 0].detach())


def test_iou_nets_ascent_leaves_tiny_boxes_alone():
    model = refiner(IoUNetRefiner)
    tiny = Boxes.from_images(
        [torch.tensor([[10.0, 10, 10, 10], [20.0, 20, 21, 50]])],
        [torch.tensor([0, 1])],
    )
    surface = model.surface(features(images=1), SIZES[:1])
    refined = model.refine(surface, tiny, SIZES[:1])
    torch.testing.assert_close(refined.corners, tiny.corners)
    assert refined.num_accepted.tolist() == [0, 0]


@pytest.mark.parametrize(
    'activation', ['ReLU', 'LeakyReLU', 'PReLU', 'ReLU6', 'HSwish']
)
def test_score_matching_refuses_a_head_whose_curvature_is_lost(activation):
    with pytest.raises(ValueError, match='SMLoss needs second derivatives'):
        refiner(
            loss=dict(type='SMLoss'),
            head=dict(
                type='EnergyHead',
                num_classes=3,
                in_channels=4,
                fc_out_channels=16,
                act_cfg=dict(type=activation),
            ),
        )


@pytest.mark.parametrize('activation', ['SiLU', 'GELU', 'Tanh', 'ELU'])
def test_score_matching_takes_a_smooth_head(activation):
    model = refiner(
        loss=dict(type='SMLoss'),
        head=dict(
            type='EnergyHead',
            num_classes=3,
            in_channels=4,
            fc_out_channels=16,
            act_cfg=dict(type=activation),
        ),
    )
    corners, labels = zip(*boxes().split(boxes().corners, boxes().labels))
    loss = model.loss(features(), corners, labels, SIZES)['loss_energy']
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('loss', ['SMLoss', 'DSMLoss', 'MLMCMCLoss'])
def test_boxes_without_area_do_not_spoil_a_loss_with_gradients(loss):
    model = refiner(loss=dict(type=loss))
    corners = [torch.tensor([[10.0, 12, 40, 50], [30.0, 30, 30, 30]])]
    loss = model.loss(
        features(images=1), corners, [torch.tensor([0, 1])], SIZES[:1]
    )['loss_energy']
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_products_in_bfloat16_move_boxes_alike():
    """Ordering and ascent; the weights themselves stay."""
    model, reference = refiner(step_length=(0.003, 0.003)), boxes()
    surface = model.surface(features(), SIZES)
    exact = (
        model.logdensity(surface, reference),
        model.refine(surface, reference, SIZES),
    )
    low = refiner(step_length=(0.003, 0.003), inference_dtype='bfloat16')
    low.load_state_dict(model.state_dict())
    found = (
        low.logdensity(surface, reference),
        low.refine(surface, reference, SIZES),
    )
    assert found[0].dtype == found[1].corners.dtype == torch.float32
    assert not torch.equal(found[0], exact[0])
    torch.testing.assert_close(found[0], exact[0], rtol=0.05, atol=0.05)
    shift = [r.corners - reference.corners for r in (found[1], exact[1])]
    assert (shift[0] - shift[1]).abs().mean() < 0.1 * shift[1].abs().mean()
    assert all(p.dtype == torch.float32 for p in low.parameters())


def test_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match="inference_dtype must be 'bfloat16'"):
        refiner(inference_dtype='int8')
