r"""IoU-Net's training: regress the IoU of jittered boxes.

Not a density, but the point of departure of energy-based box regression: f is
the predicted IoU, and refinement climbs it all the same.

Source: "Acquisition of Localization Confidence for Accurate Object Detection",
ECCV 2018, arXiv 1807.11590, sections 3.1 and 3.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import positive_int
from ..diagnostics import logdensity_at
from ..noise import Generators, draw
from ..types import LogDensityFn, LossInfo

# Halvings of the interval in which a jitter of the wanted IoU lies.
_BISECTIONS = 20
# IoU along any direction falls below 0.01 before this distance.
_FARTHEST = 10.0


def relative_iou(offsets: Tensor) -> Tensor:
    """IoU with the reference box of boxes at offsets (..., 4) from it.

    Offsets are shifts of the centre over the reference's size and logarithms
    of the ratio of sizes, so the reference is a unit square around zero.
    """
    shift, log_size = offsets[..., :2], offsets[..., 2:]
    half = 0.5 * log_size.exp()
    overlap = (
        ((shift + half).clamp(max=0.5) - (shift - half).clamp(min=-0.5))
        .clamp(min=0)
        .prod(-1)
    )
    area = log_size.sum(-1).exp()
    return overlap / (1 + area - overlap)


class IoUNet(nn.Module):
    r"""Smooth L1 loss between f and the IoU, scaled to [-1, 1].

    Jittered boxes are balanced by IoU: for each, an IoU is drawn uniformly
    from [min_iou, 1] and a direction isotropically in relative space; the
    jitter is the point on that ray that has the IoU. (The paper samples from
    a pool of random boxes instead, whose making it does not describe.) The
    target of f is :math:`2 (IoU - min) / (1 - min) - 1`.

    Args:
        num_samples: M, jittered boxes per object.
        min_iou: Lowest IoU of a jittered box.

    Raises:
        ValueError: If ``num_samples`` < 1 or ``min_iou`` is not in
            [0.01, 1).
    """

    needs_curvature = False

    def __init__(self, num_samples: int, min_iou: float = 0.5) -> None:
        super().__init__()
        self.num_samples = positive_int('num_samples', num_samples)
        self.num_candidates = num_samples
        if not 0.01 <= min_iou < 1:
            raise ValueError(f'min_iou must be in [0.01, 1), got {min_iou}')
        self.min_iou = min_iou

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        generator: Generators = None,
    ) -> tuple[Tensor, LossInfo]:
        """Losses (N,) and info of the jittered boxes (N, M).

        Targets (N, 4) are boxes in relative box space.

        Raises:
            ValueError: If targets are no boxes.
        """
        if targets.shape[1:] != (4,):
            raise ValueError(
                'IoU-Net trains on boxes, targets (N, 4); got '
                f'{tuple(targets.shape)}'
            )
        shape = (len(targets), self.num_samples)
        options = dict(dtype=targets.dtype, device=targets.device)
        uniform = draw(torch.rand, shape, generator, **options)
        direction = draw(torch.randn, (*shape, 4), generator, **options)
        wanted = self.min_iou + (1 - self.min_iou) * uniform
        offsets = jitter_of_iou(wanted, direction)
        # Jitter is relative to the target, y to the reference box.
        centre, log_size = targets[:, None, :2], targets[:, None, 2:]
        candidates = torch.cat(
            [
                centre + offsets[..., :2] * log_size.exp(),
                log_size + offsets[..., 2:],
            ],
            -1,
        )
        label = 2 * (wanted - self.min_iou) / (1 - self.min_iou) - 1
        logdensity = logdensity_fn(candidates)
        losses = F.smooth_l1_loss(logdensity, label, reduction='none').mean(1)
        return losses, LossInfo(
            logdensity_at(logdensity_fn, targets), logdensity.detach()
        )

    def extra_repr(self) -> str:
        return f'num_samples={self.num_samples}, min_iou={self.min_iou}'


def jitter_of_iou(iou: Tensor, direction: Tensor) -> Tensor:
    """The offset along each direction that has a given IoU.

    Args:
        iou: (...) in [0.01, 1].
        direction: (..., 4), of any length but zero.

    Returns:
        Offsets (..., 4).
    """
    direction = F.normalize(direction, dim=-1)
    low = torch.zeros_like(iou)
    high = torch.full_like(iou, _FARTHEST)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        near = relative_iou(middle[..., None] * direction) > iou
        low, high = (
            torch.where(near, middle, low),
            torch.where(near, high, middle),
        )
    return low[..., None] * direction
