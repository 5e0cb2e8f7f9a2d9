"""Relative coordinates: definition, inverse, gradients."""

import math

import torch

from mmdet_ebm.ops import boxes_to_relative, relative_to_boxes

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
