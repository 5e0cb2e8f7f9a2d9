r"""Boxes of a batch, and the relative space in which noise and ascent live.

For a reference box with centre :math:`(c_x^*, c_y^*)` and size
:math:`(w^*, h^*)`, a box has the relative coordinates

.. math:: t = \Big(\tfrac{c_x - c_x^*}{w^*}, \tfrac{c_y - c_y^*}{h^*},
          \log\tfrac{w}{w^*}, \log\tfrac{h}{h^*}\Big),

so that the reference is t = 0 and a noise level means the same for small and
large boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """The boxes of a batch of images in one table of R rows.

    Attributes:
        corners: (R, 4) x1, y1, x2, y2 in network-input pixels.
        labels: (R,) int64 classes.
        image_index: (R,) int64 image of each box.
        counts: Boxes of each image; rows are in the order of the images.
    """

    corners: Tensor
    labels: Tensor
    image_index: Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_images(
        cls, corners: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> 'Boxes':
        """Join one (K_i, 4) and one (K_i,) tensor for each image.

        Raises:
            ValueError: If boxes are not of four numbers.
        """
        for boxes in corners:
            if boxes.dim() != 2 or boxes.shape[1] != 4:
                raise ValueError(
                    'boxes must be (K, 4) corners x1, y1, x2, y2, got the '
                    f'shape {tuple(boxes.shape)}; rotated boxes are not '
                    'supported'
                )
        index = [
            torch.full_like(per_image, i) for i, per_image in enumerate(labels)
        ]
        return cls(
            torch.cat(list(corners)),
            torch.cat(list(labels)),
            torch.cat(index),
            tuple(map(len, labels)),
        )

    def chunks(self, rows: int) -> list['Boxes']:
        """Parts of at most so many rows, in copies that autograd accepts."""
        return [
            Boxes(corners, labels, index, (len(labels),))
            for corners, labels, index in zip(
                self.corners.clone().split(rows),
                self.labels.clone().split(rows),
                self.image_index.clone().split(rows),
            )
        ]

    def rows(self, index: Tensor) -> 'Boxes':
        """Some rows, without their grouping by images."""
        return Boxes(
            self.corners[index],
            self.labels[index],
            self.image_index[index],
            (len(index),),
        )

    def part(self, images: slice, rows: slice) -> 'Boxes':
        """Some rows, as if the batch began with the first of some images."""
        index = self.image_index[rows] - images.start
        corners = self.corners[rows]
        return Boxes(corners, self.labels[rows], index, (len(corners),))

    def split(self, *tables: Tensor) -> list[tuple[Tensor, ...]]:
        """The rows of each image, for every table of R rows."""
        return list(zip(*(table.split(self.counts) for table in tables)))


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


def side_sizes(boxes: Tensor) -> Tensor:
    """What positions of the sides are relative to.

    Args:
        boxes: (..., 4) corners x1, y1, x2, y2.

    Returns:
        (..., 4) width, height, width, height.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    return torch.cat([size, size], -1)


def boxes_to_sides(boxes: Tensor, reference: Tensor) -> Tensor:
    """How far each side is from that of a reference, relative to its size.

    Args:
        boxes: (..., 4) corners x1, y1, x2, y2.
        reference: Corners, broadcastable to ``boxes``, with positive size.

    Returns:
        (..., 4) along x, y, x, y.
    """
    return (boxes - reference) / side_sizes(reference)


def sides_to_boxes(sides: Tensor, reference: Tensor) -> Tensor:
    """The inverse of :func:`boxes_to_sides`.

    Args:
        sides: (..., 4) along x, y, x, y.
        reference: Corners, broadcastable to ``sides``.

    Returns:
        (..., 4) corners x1, y1, x2, y2.
    """
    return reference + sides * side_sizes(reference)


def clip_boxes(
    corners: Tensor,
    image_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
) -> Tensor:
    """Cut boxes to their images; no value is read back to the host.

    Args:
        corners: (R, 4) x1, y1, x2, y2.
        image_index: (R,) int64 image of each box.
        image_sizes: Height and width of each image.

    Returns:
        (R, 4) corners between 0 and width or height.
    """
    heights = filled([height for height, _ in image_sizes], corners)
    widths = filled([width for _, width in image_sizes], corners)
    limits = torch.stack([widths, heights, widths, heights], -1)
    return corners.clamp(min=0).minimum(limits[image_index])


def repeat_rows(values: Tensor, times: int) -> Tensor:
    """(R,) -> (R * times,), each value ``times`` times in a row."""
    return values.repeat_interleave(times, output_size=len(values) * times)


def filled(
    values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Numbers (N,) on the device of ``like``, and of its dtype by default.

    Filled, not copied from the host: a copy would wait for the device.
    """
    if not values:
        return like.new_zeros(0, dtype=dtype)
    return torch.stack([like.new_full((), v, dtype=dtype) for v in values])


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (
        (boxes[..., :2] + boxes[..., 2:]) / 2,
        boxes[..., 2:] - boxes[..., :2],
    )
