"""The boxes of a batch, before and after the ascent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Boxes evaluated at once where no graph is kept; bounds the memory.
BOXES_PER_CHUNK = 512


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
        """Join one (K_i, 4) and one (K_i,) tensor for each image."""
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
        columns = (
            t.clone().split(rows)
            for t in (self.corners, self.labels, self.image_index)
        )
        return [Boxes(*part, (len(part[0]),)) for part in zip(*columns)]

    def rows(self, index: Tensor) -> 'Boxes':
        """Some rows, without their grouping by images."""
        return Boxes(
            self.corners[index],
            self.labels[index],
            self.image_index[index],
            (len(index),),
        )

    def split(self, *tables: Tensor) -> list[tuple[Tensor, ...]]:
        """The rows of each image, for every table of R rows."""
        return list(zip(*(table.split(self.counts) for table in tables)))


@dataclass(frozen=True)
class RefinedBoxes:
    """What the ascent made of R boxes.

    Attributes:
        corners: (R, 4) refined boxes, clipped to their images.
        logdensity: (R,) log-density where the ascent ended, before clipping.
        initial_logdensity: (R,) log-density of the initial boxes.
        num_accepted: (R,) int64, ascent steps that were kept.
    """

    corners: Tensor
    logdensity: Tensor
    initial_logdensity: Tensor
    num_accepted: Tensor


def repeat_rows(values: Tensor, times: int) -> Tensor:
    """(R,) -> (R * times,), each value ``times`` times in a row."""
    return values.repeat_interleave(times, output_size=len(values) * times)
