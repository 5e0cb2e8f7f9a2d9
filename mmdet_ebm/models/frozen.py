"""A detector that trains its energy model alone, or with all of it."""

import torch
from torch import Tensor

from .refinement import Refinement
from .refiner import EnergyRefiner


def quick_layout(batch_inputs: Tensor) -> Tensor:
    """Images in the memory layout that a frozen backbone is fastest in.

    On a CPU convolutions run a third faster channels last, and pooling then
    takes the maps as they are. Not for what goes on to mmcv's RoIAlign, which
    misreads such maps.
    """
    if batch_inputs.device.type != 'cpu' or batch_inputs.dim() != 4:
        return batch_inputs
    return batch_inputs.contiguous(memory_format=torch.channels_last)


class TrainsEnergyModel:
    """Mixin: what detectors with an energy model share.

    A subclass has the attributes ``refiner`` and ``refinement`` and calls
    :meth:`freeze_if_wanted` once its modules exist.
    """

    refiner: EnergyRefiner
    refinement: Refinement
    orders_by_energy = True  # whether there is an NMS to be ordered
    freeze_detector = False

    def freeze_if_wanted(self, freeze_detector: bool) -> None:
        """Leave only the energy model trainable if ``freeze_detector``."""
        self.freeze_detector = freeze_detector
        if freeze_detector:
            self.requires_grad_(False)
            self.refiner.requires_grad_(True)

    def train(self, mode: bool = True) -> 'TrainsEnergyModel':
        """Set the mode; a frozen detector stays in eval mode."""
        super().train(mode)
        if mode and self.freeze_detector:
            for child in self.children():
                child.eval()
            self.refiner.train()
        return self
