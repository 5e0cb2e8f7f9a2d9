"""Steps that hold some objects at a time give the step of the whole batch."""

import weakref

import pytest
import torch

from mmdet_ebm.models import EnergyHead, NCEPlusLoss
from mmdet_ebm.models import energy_model as module
from mmdet_ebm.ops import FeaturePyramid

from ..small_models import (
    METHODS,
    SIZES,
    boxes,
    by_image,
    energy_model,
    feature_maps,
    head_cfg,
    no_boxes,
)

pytestmark = pytest.mark.usefixtures('no_map_is_small')

# Rows of the chunks of two objects at most, for objects() below: of the
# whole table, or of one image at a time.
TOGETHER = ([0, 1], [2, 3], [4])
BY_IMAGE = ([0, 1], [2], [3, 4])


def objects(dtype=torch.float32, channels_last=False, unfrozen=False):
    """Maps of three images, their three, no and two objects, their sizes."""
    corners, labels = by_image(boxes(dtype))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [
        m[[1, 0, 0]].to(dtype).contiguous(memory_format=layout)
        for m in feature_maps()
    ]
    return (
        [m.requires_grad_(unfrozen) for m in maps],
        [corners[1], corners[0][:0], corners[0]],
        [labels[1], labels[0][:0], labels[0]],
        [SIZES[1], SIZES[0], SIZES[0]],
    )


def loss_of(model, maps, corners, labels, sizes):
    return model.loss(maps, corners, labels, sizes)['loss_energy']


def loss_over(rows_of_chunks, model, maps, corners, labels, sizes):
    """The same loss, of the objects of one chunk after those of another."""
    model.chunked = False
    starts = [0, len(labels[0]), len(labels[0]) + len(labels[1])]
    counts = [len(each) for each in labels]
    total = 0
    for rows in rows_of_chunks:
        chosen = [
            [row - start for row in rows if 0 <= row - start < count]
            for start, count in zip(starts, counts)
        ]
        loss = loss_of(
            model,
            maps,
            [c[chosen[i]] for i, c in enumerate(corners)],
            [each[chosen[i]] for i, each in enumerate(labels)],
            sizes,
        )
        share = len(rows) / sum(counts)
        total = total + loss * (
            1 if model.loss_energy.reduction == 'sum' else share
        )
    return total


def step(loss_fn, model, *batch):
    """Loss and gradients, from the same random stream each time."""
    torch.manual_seed(1)
    loss = loss_fn(model, *batch)
    wanted = [*model.parameters(), *(m for m in batch[0] if m.requires_grad)]
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    for tensor in wanted:
        tensor.grad = None
    loss.backward()
    return [loss.detach(), *(tensor.grad for tensor in wanted)]


def assert_equals_its_chunks(model, rows_of_chunks, *batch, **tolerance):
    def reference(model, *batch):
        return loss_over(rows_of_chunks, model, *batch)

    model.chunked = True
    found = step(loss_of, model, *batch)
    for ours, theirs in zip(found, step(reference, model, *batch)):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.fixture
def two_objects(monkeypatch):
    """Make chunks of two objects of a model."""

    def set_size(model):
        candidates = model.loss_energy.method.num_candidates
        monkeypatch.setattr(module, 'CANDIDATES_PER_CHUNK', 2 * candidates)
        return model

    return set_size


@pytest.fixture
def pooled(monkeypatch):
    """Fills with the boxes pooled by each call, and how many of the earlier
    results still lie in memory then."""
    pool, made, seen = FeaturePyramid.pool, [], []

    def watched(self, corners, *args):
        alive = sum(reference() is not None for reference in made)
        seen.append((len(corners), alive))
        result = pool(self, corners, *args)
        # The memory itself: views have it too.
        made.append(weakref.ref(result.untyped_storage()))
        return result

    monkeypatch.setattr(FeaturePyramid, 'pool', watched)
    return seen


def of_method(method, **changes):
    options = {} if method == 'SMLoss' else dict(num_samples=9)
    return energy_model(loss=dict(type=method, **options, **changes))


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('unfrozen', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_a_step_is_that_of_its_chunks_one_after_the_other(
    method, channels_last, unfrozen, two_objects
):
    """Loss and gradients, in the maps too. Images go one by one where maps
    need a copy."""
    model = two_objects(of_method(method, reduction='sum').double())
    batch = objects(torch.float64, channels_last, unfrozen)
    rows = TOGETHER if channels_last else BY_IMAGE
    assert_equals_its_chunks(model, rows, *batch)


@pytest.mark.parametrize('unfrozen', [False, True])
def test_small_maps_go_together_in_any_layout(
    unfrozen, two_objects, monkeypatch
):
    monkeypatch.undo()
    model = two_objects(of_method('NCEPlusLoss', reduction='sum').double())
    batch = objects(torch.float64, unfrozen=unfrozen)
    assert not FeaturePyramid.is_in_place(batch[0])
    assert_equals_its_chunks(model, TOGETHER, *batch)


def test_the_mean_is_that_over_the_whole_batch(two_objects):
    """mmdet adds an epsilon of single precision to what it divides by."""
    model = two_objects(of_method('NCEPlusLoss').double())
    batch = objects(torch.float64)
    assert_equals_its_chunks(model, BY_IMAGE, *batch, rtol=1e-5, atol=1e-6)


def test_a_method_without_randomness_gives_the_whole_batchs_step(two_objects):
    model = two_objects(of_method('SMLoss').double())
    assert_equals_its_chunks(model, [range(5)], *objects(torch.float64))


@pytest.mark.parametrize('method', METHODS)
def test_what_is_logged_is_of_the_whole_batch(method, two_objects):
    """f at the truth does not depend on the noise."""
    model = two_objects(of_method(method))
    logged = []
    for model.chunked in (False, True):
        torch.manual_seed(1)
        logged.append(model.loss(*objects()))
    whole, chunked = logged
    assert set(whole) == set(chunked)
    if method != 'NCEPlusLoss':  # which shifts the truth by noise
        torch.testing.assert_close(
            chunked['logdensity_truth'], whole['logdensity_truth']
        )


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('unfrozen', [False, True])
@pytest.mark.parametrize('method', ['NCEPlusLoss', 'DSMLoss', 'MLMCMCLoss'])
def test_no_more_than_one_chunk_is_pooled_at_a_time(
    method, channels_last, unfrozen, two_objects, pooled
):
    model = two_objects(of_method(method))
    model.chunked = True
    batch = objects(channels_last=channels_last, unfrozen=unfrozen)
    loss_of(model, *batch).backward()
    chunk = 2 * model.loss_energy.method.num_candidates
    assert max(size for size, _ in pooled) == chunk
    # The steps of a Markov chain, or f at the truth, within its own chunk.
    assert max(alive for _, alive in pooled) <= 1
    if method == 'NCEPlusLoss':
        assert [alive for _, alive in pooled] == [0, 0, 0]


def test_an_object_with_more_candidates_than_a_chunk_goes_alone(
    monkeypatch, pooled
):
    monkeypatch.setattr(module, 'CANDIDATES_PER_CHUNK', 4)
    model = of_method('NCEPlusLoss')
    model.chunked = True
    loss_of(model, *objects()).backward()
    assert [size for size, _ in pooled] == [10] * 5


def test_many_candidates_go_in_chunks_by_themselves(
    monkeypatch, two_objects, pooled
):
    model = two_objects(of_method('NCEPlusLoss'))
    assert model.chunked is None
    for many, expected in ((50 * 4 * 49 + 1, [50]), (50 * 4 * 49, [20, 10])):
        monkeypatch.setattr(module, 'MANY_VALUES', many)
        pooled.clear()
        loss_of(model, *objects()).backward()
        assert [size for size, _ in pooled][:2] == expected
    model.chunked = False
    pooled.clear()
    loss_of(model, *objects()).backward()
    assert [size for size, _ in pooled] == [50]


@pytest.mark.parametrize('reason', ['float16', 'no gradients', 'reduction'])
def test_what_must_not_be_differentiated_at_once_goes_as_a_whole(
    reason, two_objects, pooled
):
    """Half precision scales the loss first; 'none' has a factor a row."""
    reduction = 'none' if reason == 'reduction' else 'mean'
    model = two_objects(of_method('NCEPlusLoss', reduction=reduction))
    model.chunked = True
    with (
        torch.autocast('cpu', torch.float16, enabled=reason == 'float16'),
        torch.set_grad_enabled(reason != 'no gradients'),
    ):
        loss = loss_of(model, *objects())
    assert loss.isfinite().all() and len(pooled) == 1
    assert loss.requires_grad == (reason != 'no gradients')


def test_bfloat16_products_in_chunks(two_objects, pooled):
    """As close to single precision as those of the whole batch are."""
    model, found = two_objects(of_method('LocalizationConfidenceLoss')), []
    for low, chunked in ((False, True), (True, True)):
        model.chunked = chunked
        with torch.autocast('cpu', torch.bfloat16, enabled=low):
            found.append(step(loss_of, model, *objects()))
    assert len(pooled) == 2 * 3 * 2  # samples and truth of three chunks
    for exact, rounded in zip(*found):
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize('counts', [(0, 0), (0, 2), (3, 0)])
def test_images_without_objects(counts, two_objects):
    model = two_objects(of_method('NCEPlusLoss'))
    model.chunked = True
    corners, labels = zip(
        *[
            (corners[:count], labels[:count])
            for corners, labels, count in zip(*by_image(boxes()), counts)
        ]
    )
    loss = loss_of(model, feature_maps(), corners, labels, SIZES)
    loss.backward()
    assert (loss > 0) == (sum(counts) > 0)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('method', METHODS)
def test_unfrozen_maps_of_images_without_objects_get_zeros(
    method, two_objects
):
    model = two_objects(of_method(method))
    for model.chunked in (False, True):
        maps, *rest = objects(unfrozen=True)
        loss_of(model, maps, *rest).backward()
        for m in maps:
            assert (m.grad[1] == 0).all()  # the image without objects
        assert (maps[0].grad[0] != 0).any()


def test_an_unfrozen_detector_without_any_object(two_objects):
    model = two_objects(of_method('NCEPlusLoss'))
    model.chunked = True
    maps = [m.requires_grad_() for m in feature_maps()]
    loss = loss_of(model, maps, *by_image(no_boxes()), SIZES)
    loss.backward()
    assert loss == 0 and all((m.grad == 0).all() for m in maps)


# ------------------------------------------- heads and losses of other kinds


@pytest.mark.parametrize(
    'options',
    [
        dict(class_agnostic=True),
        dict(act_cfg=dict(type='ReLU', inplace=True)),
        dict(num_fcs=1),
        dict(reduced_channels=2),
        dict(roi_feat_size=(3, 2)),
    ],
)
def test_every_head_goes_in_chunks(options, two_objects):
    loss = dict(type='NCEPlusLoss', num_samples=8, reduction='sum')
    model = energy_model(head=head_cfg(**options), loss=loss)
    model = two_objects(model.double())
    assert_equals_its_chunks(model, BY_IMAGE, *objects(torch.float64))


class ScaledHead(EnergyHead):
    """A user's head, which is more than its layers."""

    def forward(self, pooled, labels):
        return 3 * super().forward(pooled, labels)


class TenTimesNCEPlus(NCEPlusLoss):
    """A user's loss."""

    def forward(self, *args, **kwargs):
        loss, info = super().forward(*args, **kwargs)
        return 10 * loss, info


@pytest.mark.parametrize('change', ['hooks', 'weight norm', 'head', 'loss'])
def test_what_a_user_changed_counts(change, two_objects):
    model = two_objects(of_method('NCEPlusLoss', reduction='sum').double())
    rows = BY_IMAGE
    if change == 'hooks':
        for parameter in model.parameters():
            parameter.register_hook(lambda grad: 2 * grad)
        rows = [range(5)]  # a hook is to see the gradient of the whole step
    elif change == 'head':
        model.head.__class__ = ScaledHead
    elif change == 'loss':
        model.loss_energy = TenTimesNCEPlus(num_samples=9, reduction='sum')
    else:
        torch.nn.utils.parametrizations.weight_norm(model.head.shared_fcs[0])
    assert_equals_its_chunks(model, rows, *objects(torch.float64))


def test_frozen_parameters_get_no_gradient(two_objects):
    model = two_objects(of_method('NCEPlusLoss', reduction='sum').double())
    model.head.shared_fcs[0].requires_grad_(False)
    assert_equals_its_chunks(model, BY_IMAGE, *objects(torch.float64))
    first, *others = model.head.shared_fcs[::2]
    assert first.weight.grad is None and first.bias.grad is None
    assert all((layer.weight.grad != 0).any() for layer in others)


@pytest.mark.parametrize('method', ['NCEPlusLoss', 'SMLoss'])
def test_a_frozen_model_has_a_loss_all_the_same(method):
    model = of_method(method).requires_grad_(False)
    losses = []
    for model.chunked in (False, True):
        torch.manual_seed(1)
        losses.append(loss_of(model, *objects()))
    assert torch.equal(*losses)


def test_features_of_another_size_are_refused():
    model = energy_model(head=head_cfg(in_channels=5))
    for model.chunked in (False, True):
        with pytest.raises(ValueError, match='expects maps of 5 channels'):
            loss_of(model, *objects())
