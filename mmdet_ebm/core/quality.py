r"""How much a box is worth: the IoU thresholds that it passes.

Of a box b and the true box y, the quality is the share of COCO's ten IoU
thresholds that b passes, made continuous:
:math:`\mathrm{clip}((\mathrm{IoU}(b, y) - 0.45) / 0.5, 0, 1)`.
"""

import torch
from torch import Tensor


def quality(iou: Tensor) -> Tensor:
    """Share of COCO's thresholds that IoUs pass, made continuous."""
    return ((iou - 0.45) / 0.5).clamp(0, 1)


def side_iou(placed: Tensor, true: Tensor) -> Tensor:
    """IoU (R, S) of sides (R, 4, S) relative to the box 0, 0, 1, 1."""
    first = torch.maximum(placed[:, :2], true[:, :2])
    last = torch.minimum(placed[:, 2:], true[:, 2:])
    overlap = (1 + last - first).clamp(min=0).prod(1)
    areas = [
        (1 + s[:, 2:] - s[:, :2]).clamp(min=0).prod(1) for s in (placed, true)
    ]
    union = areas[0] + areas[1] - overlap
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)
