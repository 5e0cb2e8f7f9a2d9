r"""Boxes and the relative space in which noise and ascent live.

For a reference box with centre :math:`(c_x^*, c_y^*)` and size
:math:`(w^*, h^*)`, a box has the relative coordinates

.. math:: t = \Big(\tfrac{c_x - c_x^*}{w^*}, \tfrac{c_y - c_y^*}{h^*},
          \log\tfrac{w}{w^*}, \log\tfrac{h}{h^*}\Big),

so that the reference is t = 0 and a noise level means the same for small and
large boxes.
"""

import torch
from torch import Tensor


def boxes_to_relative(boxes: Tensor, reference: Tensor) -> Tensor:
    """Relative coordinates of ``boxes`` with respect to ``reference``.

    Args:
        boxes: (..., 4) corners x1, y1, x2, y2 with x1 < x2 and y1 < y2.
        reference: Corners, broadcastable to ``boxes``, with positive size.

    Returns:
        (..., 4) relative coordinates; not finite where a size is not positive.
    """
    centre, size = _centre_and_size(boxes)
    ref_centre, ref_size = _centre_and_size(reference)
    return torch.cat(
        [(centre - ref_centre) / ref_size, (size / ref_size).log()], -1
    )


def relative_to_boxes(relative: Tensor, reference: Tensor) -> Tensor:
    """Corners of the boxes at relative coordinates; inverse of the above.

    Args:
        relative: (..., 4) relative coordinates.
        reference: Corners, broadcastable to ``relative``.

    Returns:
        (..., 4) corners x1, y1, x2, y2 in the frame of ``reference``.
    """
    ref_centre, ref_size = _centre_and_size(reference)
    centre = ref_centre + relative[..., :2] * ref_size
    half = ref_size * relative[..., 2:].exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (
        (boxes[..., :2] + boxes[..., 2:]) / 2,
        boxes[..., 2:] - boxes[..., :2],
    )
