"""Relative coordinates, and the boxes of a batch."""

import math

import torch

from mmdet_ebm.ops import (
    Boxes,
    boxes_to_relative,
    boxes_to_sides,
    clip_boxes,
    relative_to_boxes,
    repeat_rows,
    side_sizes,
    sides_to_boxes,
)

REFERENCE = torch.tensor(
    [[10.0, 20.0, 30.0, 60.0]]
)  # centre 20, 40; size 20, 40


def test_reference_is_the_origin():
    assert (boxes_to_relative(REFERENCE, REFERENCE) == 0).all()
    torch.testing.assert_close(
        relative_to_boxes(torch.zeros(1, 4), REFERENCE), REFERENCE
    )


def test_known_box():
    """Centre moved by a quarter width and height, twice as wide, half high."""
    box = torch.tensor([[5.0, 40.0, 45.0, 60.0]])
    expected = torch.tensor([[0.25, 0.25, math.log(2), -math.log(2)]])
    torch.testing.assert_close(boxes_to_relative(box, REFERENCE), expected)


def test_conversions_are_inverse_for_many_samples_of_each_box():
    relative = torch.randn(3, 50, 4, dtype=torch.float64) * 0.5
    reference = torch.tensor(
        [
            [[0.0, 0.0, 4.0, 9.0]],
            [[-7.0, 3.0, 90.0, 5.0]],
            [[1e3, 1e3, 1001.0, 1003.0]],
        ]
    ).double()
    boxes = relative_to_boxes(relative, reference)
    assert boxes.shape == (3, 50, 4)
    torch.testing.assert_close(boxes_to_relative(boxes, reference), relative)


def test_sides_are_measured_in_sizes_of_the_reference():
    box = torch.tensor([[5.0, 40.0, 45.0, 60.0]])
    assert side_sizes(REFERENCE).tolist() == [[20, 40, 20, 40]]
    sides = boxes_to_sides(box, REFERENCE)
    torch.testing.assert_close(sides, torch.tensor([[-0.25, 0.5, 0.75, 0.0]]))
    torch.testing.assert_close(sides_to_boxes(sides, REFERENCE), box)


def test_size_stays_positive_however_far_it_shrinks():
    boxes = relative_to_boxes(
        torch.tensor([[0.0, 0.0, -9.0, -9.0]]), REFERENCE
    )
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_gradients():
    relative = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    reference = REFERENCE.double().expand(2, 4).clone().requires_grad_()
    assert torch.autograd.gradcheck(relative_to_boxes, (relative, reference))
    assert torch.autograd.gradcheck(
        boxes_to_relative,
        (
            relative_to_boxes(relative, reference).detach().requires_grad_(),
            reference,
        ),
    )


def test_boxes_are_clipped_to_their_images():
    sizes = [(40, 60), (50, 30), (10, 10)]
    corners = 100 * torch.rand(50, 4) - 20
    index = torch.randint(3, (50,))
    expected = [
        [
            min(max(x1, 0), sizes[i][1]),
            min(max(y1, 0), sizes[i][0]),
            min(max(x2, 0), sizes[i][1]),
            min(max(y2, 0), sizes[i][0]),
        ]
        for (x1, y1, x2, y2), i in zip(corners.tolist(), index.tolist())
    ]
    clipped = clip_boxes(corners, index, sizes)
    assert torch.equal(clipped, torch.tensor(expected))


def test_clipping_no_boxes_and_boxes_without_data():
    index = torch.zeros(0, dtype=torch.long)
    assert clip_boxes(torch.zeros(0, 4), index, []).shape == (0, 4)
    on_meta = torch.zeros(2, 4, device='meta')
    index = torch.zeros(2, dtype=torch.long, device='meta')
    assert clip_boxes(on_meta, index, [(4, 5)]).shape == (2, 4)


def batch(counts=(2, 0, 3)):
    corners = [torch.rand(n, 4) for n in counts]
    labels = [torch.randint(5, (n,)) for n in counts]
    return corners, labels, Boxes.from_images(corners, labels)


def test_boxes_of_images_are_joined_and_split_again():
    corners, labels, boxes = batch()
    assert boxes.image_index.tolist() == [0, 0, 2, 2, 2]
    parts = boxes.split(boxes.corners, boxes.labels)
    for part, expected in zip(parts, zip(corners, labels), strict=True):
        assert all(map(torch.equal, part, expected))


def test_some_rows_of_boxes():
    _, _, boxes = batch()
    some = boxes.rows(torch.tensor([3, 0]))
    assert torch.equal(some.corners, boxes.corners[[3, 0]])
    assert torch.equal(some.labels, boxes.labels[[3, 0]])
    assert some.image_index.tolist() == [2, 0] and some.counts == (2,)


def test_chunks_hold_all_rows_in_order_and_accept_gradients():
    with torch.inference_mode():
        _, _, boxes = batch()
    chunks = boxes.chunks(2)
    assert [chunk.counts for chunk in chunks] == [(2,), (2,), (1,)]
    for name in ('corners', 'labels', 'image_index'):
        joined = torch.cat([getattr(chunk, name) for chunk in chunks])
        assert torch.equal(joined, getattr(boxes, name))
    assert not chunks[0].corners.is_inference()


def test_rows_are_repeated_one_after_the_other():
    assert repeat_rows(torch.tensor([4, 7]), 3).tolist() == [4] * 3 + [7] * 3
