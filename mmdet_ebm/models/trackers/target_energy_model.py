r"""The energy model of a target's box, conditional on how it looked before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from mmdet.registry import MODELS
from mmdet.utils import ConfigType
from mmengine.model.weight_init import normal_init
from torch import Tensor, nn

from ...core import LogDensityFn, separation
from ...ops import Boxes, FeaturePyramid, repeat_rows
from ..energy_model import EnergyModel
from ..necks import EnergyNeck


@dataclass(frozen=True)
class TargetScene:
    """What a batch of N frames and their targets is to the energy model.

    Attributes:
        pyramid: Of the searched patches.
        modulation: (N, L, C) of each level and channel, from the templates.
        image_sizes: None: boxes may reach out of the patch.
    """

    pyramid: FeaturePyramid
    modulation: Tensor
    image_sizes: None = None


@MODELS.register_module()
class TargetEnergyModel(EnergyModel):
    r"""Energy-based model of the box of one target.

    With z the template, the target in an earlier frame,

    .. math:: f(x, z, y) = \mathrm{head}\big(\mathrm{join}_l\;
              m_l(z) \odot \mathrm{pool}_l(\mathrm{maps}_l(x), y)\big) ,

    where :math:`m_l(z)` is a vector with a number for each channel of level
    l, a linear map of what is pooled from the template at the target's box.
    Every candidate is pooled from all levels. Training, ascent, density and
    uncertainty are those of :class:`mmdet_ebm.models.EnergyModel`; a
    :class:`TargetScene` stands where a pyramid does, and every box has the
    label 0.

    Args:
        in_channels: Of the backbone's maps, finest first.
        channels: C, of the maps that are pooled.
        head: Config of an ``EnergyHead``, without its input's shape.
        loss: Config of a training method, such as ``NCEPlusLoss``.
        featmap_strides: Network-input pixels per cell of each level.
        search_bins: Bins of a candidate, along y and along x.
        template_bins: Bins of the template's box, likewise.
        **kwargs: ``ascent``, ``uncertainty``, ``density``, ``min_box_size``,
            ``inference_dtype`` and ``init_cfg`` of ``EnergyModel``.

    Raises:
        ValueError: If the numbers of levels differ.

    Source: "ATOM: Accurate Tracking by Overlap Maximization", CVPR 2019,
    arXiv 1811.07628, section 3.1, for the modulation; "How to Train Your
    Energy-Based Model for Regression", BMVC 2020, arXiv 2005.01698, section
    5.2.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        head: ConfigType,
        loss: ConfigType,
        featmap_strides: Sequence[int],
        search_bins: int = 4,
        template_bins: int = 3,
        **kwargs,
    ) -> None:
        num_levels = len(featmap_strides)
        if len(in_channels) != num_levels:
            raise ValueError(
                'expected as many in_channels as featmap_strides, got '
                f'{tuple(in_channels)} and {tuple(featmap_strides)}'
            )
        super().__init__(
            head=dict(
                type='EnergyHead',
                num_classes=1,
                in_channels=num_levels * channels * search_bins**2,
                roi_feat_size=1,
                **head,
            ),
            loss=loss,
            featmap_strides=featmap_strides,
            **kwargs,
        )
        self.search_bins = search_bins
        self.template_bins = template_bins
        self.search_neck = EnergyNeck(in_channels, channels)
        self.template_neck = EnergyNeck(in_channels, channels)
        self.modulator = nn.Linear(
            num_levels * channels * template_bins**2, num_levels * channels
        )

    def init_weights(self) -> None:
        """mmengine's, and modulations that begin near 1."""
        super().init_weights()
        normal_init(self.modulator, std=0.01, bias=1.0)

    # -------------------------------------------------- from maps to a scene

    def modulation(self, maps: Sequence[Tensor], corners: Tensor) -> Tensor:
        """What to look for.

        Args:
            maps: (N, C_l, H_l, W_l) of the templates' patches.
            corners: (N, 4) of their targets, in pixels of the patches.

        Returns:
            (N, L, C).
        """
        pyramid = self._joined(self.template_neck(maps))
        image = torch.arange(len(corners), device=corners.device)
        pooled = _pool(pyramid, corners, image, self.template_bins)
        joined = pooled.transpose(0, 1).flatten(1)
        return self.modulator(joined).unflatten(
            1, (pyramid.num_levels, pyramid.channels)
        )

    def scene(self, maps: Sequence[Tensor], modulation: Tensor) -> TargetScene:
        """Prepare frames for all later calls.

        Args:
            maps: (N, C_l, H_l, W_l) of the searched patches.
            modulation: (N, L, C) from :meth:`modulation`.
        """
        return TargetScene(self._joined(self.search_neck(maps)), modulation)

    def _joined(self, maps: Sequence[Tensor]) -> FeaturePyramid:
        # As one table of all levels' cells, so that one call pools them all.
        return FeaturePyramid(
            [each.contiguous() for each in maps], self.featmap_strides
        )

    def corner_logdensity_fn(
        self,
        pyramid: TargetScene,
        reference: Boxes,
        head: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> LogDensityFn:
        """f as a function of corners, in pixels of the patches.

        Args:
            pyramid: The scene.
            reference: R boxes, of which only the images count.
            head: Evaluates instead of ``self.head``.

        Returns:
            Corners (R, S, 4) -> f (R, S).
        """
        head = head or self.head

        def logdensity(corners: Tensor) -> Tensor:
            rows, samples = corners.shape[:2]
            image = repeat_rows(reference.image_index, samples)
            pooled = _pool(
                pyramid.pyramid,
                corners.flatten(0, 1),
                image,
                self.search_bins,
            )
            vectors = pyramid.modulation.transpose(0, 1)[:, image, None]
            joined = (pooled * vectors).transpose(0, 1).flatten(1)
            labels = torch.zeros_like(image)
            return head(joined[..., None, None], labels).view(rows, samples)

        return logdensity

    # ------------------------------------------------------------- training

    def loss(
        self,
        template_maps: Sequence[Tensor],
        template_corners: Tensor,
        search_maps: Sequence[Tensor],
        corners: Tensor,
    ) -> dict[str, Tensor]:
        """The training method's loss, averaged over the N pairs of a batch.

        Args:
            template_maps: (N, C_l, H_l, W_l) of the templates' patches.
            template_corners: (N, 4) the targets in them.
            search_maps: (N, C_l, H_l, W_l) of the searched patches.
            corners: (N, 4) the targets in them.

        Returns:
            ``loss_energy``, and for the log the figures of
            ``mmdet_ebm.core.separation``.
        """
        scene = self.scene(
            search_maps, self.modulation(template_maps, template_corners)
        )
        boxes = one_box_each(corners)
        loss, info = self.loss_energy(
            self.logdensity_fn(scene, boxes), torch.zeros_like(corners)
        )
        # Score matching does not depend on what only shifts f.
        unused = sum(p.sum() for p in self.parameters() if p.dim() == 1)
        weight = torch.ones_like(corners[:, 0])
        return dict(
            loss_energy=loss + 0 * unused,
            **separation(info.truth, info.noise, weight),
        )


def one_box_each(corners: Tensor) -> Boxes:
    """The boxes (N, 4) of N patches."""
    index = torch.arange(len(corners), device=corners.device)
    return Boxes(corners, torch.zeros_like(index), index, (1,) * len(corners))


def boxes_of_one(corners: Tensor) -> Boxes:
    """Boxes (K, 4) of the first patch."""
    boxes = one_box_each(corners)
    return replace(
        boxes, image_index=boxes.labels.clone(), counts=(len(corners),)
    )


def _pool(
    pyramid: FeaturePyramid, corners: Tensor, image: Tensor, bins: int
) -> Tensor:
    """(L, R, bins * bins, C) of boxes (R, 4) of images (R,), of all levels."""
    levels = torch.arange(pyramid.num_levels, device=image.device)
    # Level after level: rows of one map that follow each other are quicker.
    pooled = pyramid.pool(
        corners.repeat(pyramid.num_levels, 1),
        image.repeat(pyramid.num_levels),
        levels.repeat_interleave(len(image)),
        (bins, bins),
    )
    # Channels last: as they lie in memory.
    return (
        pooled.permute(0, 2, 3, 1)
        .flatten(1, 2)
        .unflatten(0, (pyramid.num_levels, len(image)))
    )
