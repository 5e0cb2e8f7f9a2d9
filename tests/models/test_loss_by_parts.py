"""Steps that keep little: by parts, or evaluated again for the gradients."""

import weakref

import pytest
import torch

from mmdet_ebm.models import EnergyHead, NCEPlusLoss, training
from mmdet_ebm.models.loss_by_parts import loss_by_parts

from .test_refiner import METHODS, SIZES, boxes, features, refiner


def objects():
    """Three images: three objects, none, two."""
    corners, labels = zip(*boxes().split(boxes().corners, boxes().labels))
    return (
        [f[[1, 0, 0]] for f in features()],
        [corners[1], corners[0][:0], corners[0]],
        [labels[1], torch.zeros(0).long(), labels[0]],
        [SIZES[1], SIZES[0], SIZES[0]],
    )


def step(model, maps, corners, labels, sizes, seed=1):
    """Loss, what is logged, and gradients of a step."""
    torch.manual_seed(seed)
    model.zero_grad()
    logged = model.loss(maps, corners, labels, sizes)
    logged['loss_energy'].backward()
    return [logged, *(p.grad.clone() for p in model.parameters())]


@pytest.fixture
def calls(monkeypatch):
    """How often a step has gone by parts; small parts, whatever the size."""
    monkeypatch.setattr('mmdet_ebm.models.boxes.BOXES_PER_CHUNK', 5)
    monkeypatch.setattr(training, '_MANY_VALUES', 1)
    monkeypatch.setattr(training, '_ROWS_PER_PART', 20)
    seen = []

    def counted(head, parts, part_loss):
        parts = list(parts)
        seen.append([len(labels) for _, labels in parts])
        return loss_by_parts(head, parts, part_loss)

    monkeypatch.setattr(training, 'loss_by_parts', counted)
    return seen


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('loss', METHODS)
def test_saving_memory_changes_neither_loss_nor_gradients(
    loss, channels_last, calls
):
    maps, corners, labels, sizes = objects()
    maps = [f.double() for f in maps]
    if channels_last:
        maps = [f.contiguous(memory_format=torch.channels_last) for f in maps]
    corners = [c.double() for c in corners]
    torch.manual_seed(0)
    options = {} if loss == 'SMLoss' else dict(num_samples=9)
    model = refiner(loss=dict(type=loss, **options)).double()
    found = []
    for model.memory_saving in (False, True, None):
        found.append(step(model, maps, corners, labels, sizes))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    if loss in ('SMLoss', 'DSMLoss'):
        assert calls == []
    else:
        # Objects of 9 or 10 candidates, 2 objects at most at once, and images
        # one by one where maps must be copied.
        samples = (
            9 if loss in ('KLDISLoss', 'LocalizationConfidenceLoss') else 10
        )
        counts = [2, 2, 1] if channels_last else [2, 1, 2]
        assert calls == [[samples * n for n in counts]] * 2


@pytest.mark.parametrize('channels_last', [False, True])
def test_pooled_features_of_one_part_exist_at_a_time(
    channels_last, monkeypatch
):
    monkeypatch.setattr(training, '_ROWS_PER_PART', 20)
    model = refiner(memory_saving=True)
    maps, *rest = objects()
    if channels_last:
        maps = [f.contiguous(memory_format=torch.channels_last) for f in maps]
    pool, made, alive = model.roi_extractor.pool, [], []

    def watched(*args):
        alive.append(sum(reference() is not None for reference in made))
        pooled = pool(*args)
        # The memory itself: views have it too.
        made.append(weakref.ref(pooled.untyped_storage()))
        return pooled

    monkeypatch.setattr(model.roi_extractor, 'pool', watched)
    model.loss(maps, *rest)['loss_energy'].backward()
    assert alive == [0, 0, 0]


def test_saving_memory_with_more_candidates_than_a_part_holds(calls):
    """Then some of an object's are evaluated at a time, twice."""
    model = refiner(loss=dict(type='NCEPlusLoss', num_samples=50))
    sizes, found = [], []
    model.head.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    for model.memory_saving in (False, True, None):
        sizes.append('next')
        found.append(step(model, *objects()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-5)
    assert calls == [] and sizes[:2] == ['next', 5 * 51]
    chunks = 2 * (3 * 51 // 5 + 1 + 2 * 51 // 5 + 1)  # of 5 boxes at most
    assert len(sizes[2:]) == 2 * (1 + chunks)
    assert max(size for size in sizes[2:] if size != 'next') == 5


def test_saving_memory_reaches_the_feature_maps_of_an_unfrozen_detector():
    corners, labels = zip(*boxes().split(boxes().corners, boxes().labels))
    model, grads = refiner(), []
    for model.memory_saving in (False, True, None):
        torch.manual_seed(1)
        maps = [f.requires_grad_() for f in features()]
        model.loss(maps, corners, labels, SIZES)['loss_energy'].backward()
        grads.append([f.grad for f in maps])
    for ordinary, saving, default in zip(*grads):
        torch.testing.assert_close(saving, ordinary, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(default, ordinary, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('loss', METHODS)
def test_saving_memory_without_any_object(loss):
    model = refiner(loss=dict(type=loss), memory_saving=True)
    value = model.loss(
        features(), [torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2, SIZES
    )['loss_energy']
    value.backward()
    assert value == 0 and all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize(
    'options',
    [
        dict(class_agnostic=True),
        dict(act_cfg=dict(type='ReLU', inplace=True)),
        dict(num_fcs=1),
        dict(reduced_channels=2),
    ],
)
def test_every_head_goes_by_parts(options, calls):
    head = dict(
        type='EnergyHead',
        num_classes=3,
        in_channels=4,
        fc_out_channels=16,
        **options,
    )
    model, found = refiner(head=head), []
    for model.memory_saving in (False, True):
        found.append(step(model, *objects()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


def test_frozen_parameters_get_no_gradient(calls):
    model = refiner(memory_saving=True)
    model.head.shared_fcs[0].requires_grad_(False)
    model.loss(*objects())['loss_energy'].backward()
    first, *others = model.head.shared_fcs[::2]
    assert calls and first.weight.grad is None and first.bias.grad is None
    assert all((layer.weight.grad != 0).any() for layer in others)


def test_the_backward_pass_brings_a_factor_and_may_come_twice(calls):
    model = refiner(memory_saving=True)
    once = step(model, *objects())[1:]
    torch.manual_seed(1)
    model.zero_grad()
    loss = 3 * model.loss(*objects())['loss_energy']
    loss.backward(retain_graph=True)
    loss.backward()
    assert len(calls) == 2
    for parameter, grad in zip(model.parameters(), once):
        torch.testing.assert_close(parameter.grad, 6 * grad)


def test_bfloat16_products_by_parts(calls):
    """As close to single precision as those of the whole batch are."""
    model, found = refiner(), []
    for dtype, saving in (
        (None, False),
        (torch.bfloat16, False),
        (torch.bfloat16, True),
    ):
        model.memory_saving = saving
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype is not None):
            found.append(step(model, *objects())[1:])
    assert len(calls) == 1
    for exact, whole, parts in zip(*found):
        assert parts.dtype == torch.float32
        bound = 0.05 * exact.norm() + 1e-3  # NCE+ cannot move the last bias
        assert (parts - exact).norm() < bound
        assert (whole - exact).norm() < bound


class TenTimesNCEPlus(NCEPlusLoss):
    """A user's loss, which does not go in two stages."""

    def forward(self, *args, **kwargs):
        return 10 * super().forward(*args, **kwargs)


def test_a_loss_with_a_forward_of_its_own_is_called(calls):
    model, found = refiner(), []
    model.loss_energy = TenTimesNCEPlus(num_samples=8)
    for model.memory_saving in (False, True):
        found.append(step(model, *objects()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert calls == []


class ScaledHead(EnergyHead):
    """A user's head, which is more than its layers."""

    def forward(self, pooled, labels):
        return 3 * super().forward(pooled, labels)


@pytest.mark.parametrize('change', ['hooks', 'weight norm', 'class'])
def test_heads_that_were_changed_get_their_gradients(change, calls):
    model, found = refiner(), []
    if change == 'hooks':
        for parameter in model.parameters():
            parameter.register_hook(lambda grad: 2 * grad)
    elif change == 'class':
        model.head.__class__ = ScaledHead
    else:
        torch.nn.utils.parametrizations.weight_norm(model.head.shared_fcs[0])
    for model.memory_saving in (False, True):
        found.append(step(model, *objects()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert calls == []


@pytest.mark.parametrize('reduced_channels', [None, 2])
def test_features_of_another_size_are_refused(reduced_channels, calls):
    model = refiner(
        memory_saving=True,
        roi_extractor=dict(
            type='PreciseRoIExtractor', out_channels=4, output_size=14
        ),
        head=dict(
            type='EnergyHead',
            num_classes=3,
            in_channels=4,
            fc_out_channels=16,
            reduced_channels=reduced_channels,
        ),
    )
    with pytest.raises(ValueError, match='check in_channels and roi_feat'):
        model.loss(*objects())


@pytest.mark.parametrize('reason', ['float16', 'no gradients', 'reduction'])
def test_what_must_not_be_differentiated_at_once_is_not(reason, calls):
    """Half precision scales the loss first; 'none' has a factor a row."""
    model = refiner(
        memory_saving=True,
        loss=dict(
            type='NCEPlusLoss',
            num_samples=8,
            reduction='none' if reason == 'reduction' else 'mean',
        ),
    )
    with (
        torch.autocast('cpu', torch.float16, enabled=reason == 'float16'),
        torch.set_grad_enabled(reason != 'no gradients'),
    ):
        loss = model.loss(*objects())['loss_energy']
    assert loss.isfinite().all() and calls == []
    assert loss.requires_grad == (reason != 'no gradients')


def test_one_part_is_pooled_after_the_gradients_of_the_one_before():
    head = refiner().head
    alive = []

    def parts():
        for _ in range(3):
            alive.append('pooled')
            yield torch.randn(2, 4, 7, 7), torch.tensor([0, 2])

    def part_loss(number, logdensity):
        logdensity.register_hook(lambda grad: alive.append('differentiated'))
        return (number + 1) * logdensity.square().sum()

    loss, values = loss_by_parts(head, parts(), part_loss)
    assert alive == ['pooled', 'differentiated'] * 3
    expected = (torch.tensor([1, 1, 2, 2, 3, 3]) * values.square()).sum()
    torch.testing.assert_close(loss, expected)
    assert loss.requires_grad and not values.requires_grad
