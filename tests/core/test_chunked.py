"""A loss over chunks: the gradients of the sum, one chunk in memory."""

import pytest
import torch

from mmdet_ebm.core import LossInfo, chunked_loss, chunks_of


@pytest.fixture
def weight():
    return torch.randn(4, 3, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def maps():
    return [
        torch.randn(3, n, 4, dtype=torch.float64, requires_grad=True)
        for n in (5, 2)
    ]


# Images 0, then 1 and 2, then 1 and 2 again. Rows decide the factor below.
CHUNKS = [
    (slice(0, 1), slice(0, 2)),
    (slice(1, 3), slice(2, 3)),
    (slice(1, 3), slice(3, 5)),
]


def loss_with(weight):
    def loss(images, rows, maps):
        value = sum((m @ weight).tanh().square().sum() for m in maps)
        seen = torch.arange(5.0)[rows]
        return (1 + rows.start) * value, LossInfo(seen, seen[:, None])

    return loss


def in_chunks(weight, maps, *others):
    loss, _ = chunked_loss(CHUNKS, loss_with(weight), maps, [weight, *others])
    return loss


def whole(weight, maps):
    return sum(
        loss_with(weight)(images, rows, [m[images] for m in maps])[0]
        for images, rows in CHUNKS
    )


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, materialize_grads=True)


def test_value_and_gradients_are_those_of_the_sum(weight, maps):
    found = in_chunks(weight, maps)
    expected = whole(weight, maps)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        gradients(3 * found, weight, *maps),
        gradients(3 * expected, weight, *maps),
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradients_go_on_to_what_the_maps_were_made_of(weight, maps):
    source = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def scaled():
        return [source * m.detach() for m in maps]

    loss = in_chunks(weight, scaled())
    torch.testing.assert_close(
        gradients(loss, source), gradients(whole(weight, scaled()), source)
    )


def test_backward_may_come_twice(weight, maps):
    (once,) = gradients(whole(weight, maps), weight)
    loss = in_chunks(weight, maps)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)


def test_maps_and_parameters_without_gradients_get_none(weight, maps):
    maps = [maps[0].detach(), maps[1]]
    frozen = torch.ones(3, dtype=torch.float64)

    def loss(images, rows, maps):
        value = sum((m @ weight * frozen).sum() for m in maps)
        return value, LossInfo(torch.zeros(1), torch.zeros(1, 1))

    chunks = [(slice(0, 3), slice(0, 1))]
    chunked_loss(chunks, loss, maps, [frozen, weight])[0].backward()
    assert frozen.grad is None and maps[0].grad is None
    assert (weight.grad != 0).all() and (maps[1].grad != 0).all()


def test_a_parameter_that_no_loss_uses_gets_zeros(weight, maps):
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    in_chunks(weight, maps, unused).backward()
    assert unused.grad.tolist() == [0, 0]


def test_a_chunk_is_made_after_the_graph_of_the_one_before_is_gone(maps):
    """Its gradients are computed before the next chunk's loss is asked."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    seen = []

    def loss(images, rows, maps):
        seen.append('loss')
        product = weight * sum(m.sum() for m in maps)
        product.register_hook(lambda grad: seen.append('gradients'))
        return product, LossInfo(torch.zeros(1), torch.zeros(1, 1))

    chunked_loss(CHUNKS, loss, maps, [weight])
    assert seen == ['loss', 'gradients'] * 3


def test_what_all_chunks_saw_comes_in_the_order_of_the_rows(weight, maps):
    _, info = chunked_loss(CHUNKS, loss_with(weight), maps, [weight])
    assert info.truth.tolist() == [0, 1, 2, 3, 4]
    assert info.noise.tolist() == [[0], [1], [2], [3], [4]]


def test_no_chunks_are_refused(weight, maps):
    with pytest.raises(ValueError, match='at least one chunk'):
        chunked_loss([], loss_with(weight), maps, [weight])


def test_rows_are_divided_within_images_or_across_them():
    counts = (3, 0, 2)
    assert list(chunks_of(counts, 2, together=False)) == [
        (slice(0, 1), slice(0, 2)),
        (slice(0, 1), slice(2, 3)),
        (slice(2, 3), slice(3, 5)),
    ]
    assert list(chunks_of(counts, 4, together=True)) == [
        (slice(0, 3), slice(0, 4)),
        (slice(2, 3), slice(4, 5)),
    ]
    assert not list(chunks_of((0, 0), 4, together=False))
