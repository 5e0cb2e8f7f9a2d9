"""A target-conditional energy model with its backbone, for any tracker."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from mmengine.model import BaseModel
from torch import Tensor

from ...core import AscentInfo
from ...tracking import Region
from ..uncertainty import BoxUncertainty
from .target_energy_model import TargetScene, boxes_of_one


@dataclass(frozen=True)
class Template:
    """How a target looked.

    Attributes:
        modulation: (1, L, C), a number for each level and channel.
    """

    modulation: Tensor


@dataclass(frozen=True)
class RefinedTargets:
    """What became of K boxes of one frame.

    Attributes:
        boxes: (K, 4) corners in pixels of the frame, clipped to it.
        logdensity: (K,) of the density, where the ascent ended, before
            clipping; comparable between boxes of a frame.
        std: (K, 4) standard deviations of x1, y1, x2, y2 in pixels of the
            frame; None unless asked for.
        info: The way there, in pixels of the patch.
    """

    boxes: np.ndarray
    logdensity: np.ndarray
    std: np.ndarray | None
    info: AscentInfo


@MODELS.register_module()
class TargetConditionalEnergy(BaseModel):
    """Moves a tracker's boxes to where the target's box is most likely.

    Args:
        backbone: Config of any of mmdet's backbones, frozen or not.
        energy_model: Config of a ``TargetEnergyModel``.
        patch_size: Side of the patches, in pixels; as in training.
        context: Side of the region that becomes a patch, over the root of
            the box's area; as in training.
        data_preprocessor: A ``TrackDataPreprocessor``.
        init_cfg: mmengine's initialisation.
    """

    def __init__(
        self,
        backbone: ConfigType,
        energy_model: ConfigType,
        patch_size: int,
        context: float,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.energy_model = MODELS.build(energy_model)
        self.patch_size = patch_size
        self.context = context

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence,
        mode: str = 'tensor',
    ) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """mmengine's interface.

        Args:
            inputs: (N, 2, 3, H, W): templates, and patches to search.
            data_samples: N ``TrackDataSample`` of two frames, each with one
                box in ``gt_instances``.
            mode: 'loss', or 'tensor' for the backbone's maps.
        """
        maps = self._features(inputs)
        if mode == 'tensor':
            return maps
        if mode != 'loss':
            raise ValueError(
                'a pair can be trained on; boxes are refined by refine(), '
                f'got the mode {mode!r}'
            )
        (template_maps, search_maps) = (
            [m[i::2] for m in maps] for i in (0, 1)
        )
        template_corners, corners = (
            torch.cat([pair[i].gt_instances.bboxes for pair in data_samples])
            for i in (0, 1)
        )
        return self.energy_model.loss(
            template_maps, template_corners, search_maps, corners
        )

    # ------------------------------------------------------- frame by frame

    def template(self, frame: np.ndarray, box: np.ndarray) -> Template:
        """Look at the target once.

        Args:
            frame: (H, W, 3) BGR uint8.
            box: (4,) its corners, in pixels of the frame.
        """
        region = Region.around(box, self.context, self.patch_size)
        with torch.inference_mode(False), torch.no_grad():
            modulation = self.energy_model.modulation(
                self._maps(region.cut(frame)),
                self._tensor(region.to_patch(box)[None]),
            )
        return Template(modulation)

    def scene(
        self, frame: np.ndarray, template: Template, box: np.ndarray
    ) -> tuple[TargetScene, Region]:
        """The frame around a box (4,), ready for the energy model."""
        region = Region.around(box, self.context, self.patch_size)
        with torch.inference_mode(False), torch.no_grad():
            maps = self._maps(region.cut(frame))
            return self.energy_model.scene(maps, template.modulation), region

    def refine(
        self,
        frame: np.ndarray,
        template: Template,
        boxes: np.ndarray,
        uncertainty: bool = False,
    ) -> RefinedTargets:
        """Move boxes uphill on their density.

        The density is that of ``energy_model.density``: f, and a prior around
        each box. The patch lies around the first box.

        Args:
            frame: (H, W, 3) BGR uint8.
            template: Of the target.
            boxes: (K, 4) corners in pixels of the frame.
            uncertainty: Also tell how sure the sides are.
        """
        boxes = np.asarray(boxes, float)
        scene, region = self.scene(frame, template, boxes[0])
        table = boxes_of_one(self._tensor(region.to_patch(boxes)))
        prior = self.energy_model.density.prior(table.corners)
        found = self.energy_model.refine(scene, table, prior)
        std = None
        if uncertainty:
            placed = boxes_of_one(found.corners)
            known: BoxUncertainty = self.energy_model.uncertainty(
                scene, placed, prior
            )
            pixels = np.array([region.width, region.height] * 2) / region.size
            std = known.std.cpu().numpy() * pixels
        corners = region.to_frame(found.corners.cpu().double().numpy())
        height, width = frame.shape[:2]
        return RefinedTargets(
            np.clip(corners, 0, [width, height] * 2),
            found.logdensity.cpu().numpy(),
            std,
            found.info,
        )

    def _maps(self, patch: np.ndarray) -> tuple[Tensor, ...]:
        """The backbone's maps of one patch."""
        image = torch.from_numpy(patch).permute(2, 0, 1)[None]
        data = self.data_preprocessor(
            dict(inputs=[image], data_samples=None), False
        )
        return self._features(data['inputs'])

    def _features(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Maps of patches (N, T, 3, H, W), frame after frame."""
        patches = inputs.flatten(0, 1)
        if patches.device.type == 'cpu':  # quicker, and pooled in place
            patches = patches.contiguous(memory_format=torch.channels_last)
        return self.backbone(patches)

    def _tensor(self, corners: np.ndarray) -> Tensor:
        device = next(self.energy_model.parameters()).device
        return torch.as_tensor(corners, dtype=torch.float32, device=device)
