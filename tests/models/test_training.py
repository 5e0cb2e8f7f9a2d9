"""The loss of the energy model: what it averages, and what it leaves out."""

import pytest
import torch

from mmdet_ebm.core import LossInfo

from ..small_models import (
    METHODS,
    SIZES,
    boxes,
    by_image,
    energy_model,
    feature_maps,
    no_boxes,
)


def loss_of(model, maps, corners, labels, sizes):
    return model.loss(maps, corners, labels, sizes)['loss_energy']


@pytest.mark.parametrize('chunked', [False, True])
@pytest.mark.parametrize('reduction, expected', [('mean', 2.0), ('sum', 10.0)])
def test_the_loss_averages_over_the_objects_that_count(
    reduction, expected, chunked
):
    """Losses 0 to 4 of five objects and 9 of a tiny one: (0 + .. + 4) / 5."""

    class Coordinate(torch.nn.Module):
        num_candidates = 2048  # an object in each chunk

        def forward(self, logdensity_fn, targets):
            value = next(values)[: len(targets)]
            f = logdensity_fn(targets[:, None])[:, 0]
            return value + 0 * f, LossInfo(f.detach(), f[:, None].detach())

    each = torch.tensor([0.0, 1, 2, 3, 4, 9])
    values = iter(each[:, None] if chunked else [each])
    corners, labels = by_image(boxes())
    corners[1] = torch.cat([corners[1], torch.tensor([[3.0, 3, 4, 4]])])
    labels[1] = torch.cat([labels[1], torch.tensor([0])])
    model = energy_model(
        loss=dict(type='NCELoss', reduction=reduction), chunked=chunked
    )
    model.loss_energy.method = Coordinate()
    loss = loss_of(model, feature_maps(), corners, labels, SIZES)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize('chunked', [None, True])
@pytest.mark.parametrize('method', METHODS)
def test_no_objects_give_a_zero_loss_with_a_graph(method, chunked):
    model = energy_model(loss=dict(type=method), chunked=chunked)
    loss = loss_of(model, feature_maps(), *by_image(no_boxes()), SIZES)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize('method', METHODS)
def test_an_image_without_objects_does_not_change_the_loss(method):
    model = energy_model(loss=dict(type=method))
    losses = []
    for images in (2, 3):
        torch.manual_seed(0)
        maps = [torch.cat([m, m])[:images] for m in feature_maps()]
        corners, labels = by_image(boxes())
        none = by_image(no_boxes(images - 2)) if images > 2 else ([], [])
        for table, empty in zip((corners, labels), none):
            table.extend(empty)
        sizes = (SIZES + SIZES)[:images]
        losses.append(loss_of(model, maps, corners, labels, sizes))
    assert losses[0] != 0
    torch.testing.assert_close(losses[0], losses[1])


def test_tiny_boxes_are_not_trained_on():
    model = energy_model(min_box_size=4.0)
    corners = [torch.tensor([[10.0, 10, 13, 40], [20.0, 20, 20, 20]])]
    labels = [torch.tensor([0, 1])]
    maps = feature_maps(images=1)
    assert loss_of(model, maps, corners, labels, SIZES[:1]) == 0


@pytest.mark.parametrize('chunked', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_boxes_without_area_do_not_spoil_the_gradients(method, chunked):
    model = energy_model(loss=dict(type=method), chunked=chunked)
    corners = [torch.tensor([[10.0, 12, 40, 50], [30.0, 30, 30, 30]])]
    labels = [torch.tensor([0, 1])]
    logged = model.loss(feature_maps(images=1), corners, labels, SIZES[:1])
    logged['loss_energy'].backward()
    assert all(value.isfinite() for value in logged.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_gradients_reach_every_parameter():
    model = energy_model()
    loss_of(model, feature_maps(), *by_image(boxes()), SIZES).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize('method', METHODS)
def test_the_log_tells_truth_from_noise(method):
    """Score matching sees no noise."""
    model = energy_model(loss=dict(type=method))
    logged = model.loss(feature_maps(), *by_image(boxes()), SIZES)
    figures = set(logged) - {'loss_energy'}
    expected = {'logdensity_truth'}
    if method != 'SMLoss':
        expected |= {'logdensity_noise', 'logdensity_gap', 'acc_energy'}
    assert figures == expected
    assert not any(logged[name].requires_grad for name in figures)
    if method != 'NCEPlusLoss':  # which shifts the truth
        pyramid = model.pyramid(feature_maps(), SIZES)
        torch.testing.assert_close(
            logged['logdensity_truth'],
            model.logdensity(pyramid, boxes()).mean(),
        )


def test_under_autocast_pooling_and_loss_stay_in_float32():
    model, seen = energy_model(), []
    model.head.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].dtype)
    )
    maps = [m.bfloat16() for m in feature_maps()]
    with torch.autocast('cpu', torch.bfloat16):
        loss = loss_of(model, maps, *by_image(boxes()), SIZES)
    loss.backward()
    assert seen == [torch.float32] and loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())
