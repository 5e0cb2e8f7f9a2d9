"""IoU-Net's refinement."""

from mmdet.registry import MODELS
from torch import Tensor

from ..core import AscentResult, LogDensityFn, stopping_ascent
from .refiner import EnergyRefiner


@MODELS.register_module()
class IoUNetRefiner(EnergyRefiner):
    r"""IoU-Net's refinement: corners in pixels, few and long steps.

    Each corner coordinate moves by ``step_length`` times the box's present
    side along its axis times the gradient in it,
    :math:`x \leftarrow x + \lambda w \, \partial f / \partial x`, until f
    stops changing. Meant for a head that was trained with
    ``LocalizationConfidenceLoss``; everything else is ``EnergyRefiner``.

    Args:
        roi_extractor: Config of a ``PreciseRoIExtractor``.
        head: Config of an ``EnergyHead``.
        loss: Config of a training method.
        num_steps: Ascent steps, at most.
        step_length: lambda.
        min_change: Change of f below which a box stops.
        max_fall: Fall of f above which a box stops.
        min_box_size: As in ``EnergyRefiner``.
        fix_level: As in ``EnergyRefiner``.
        uncertainty: As in ``EnergyRefiner``; f is no log-density here, so fit
            a temperature first.
        init_cfg: mmengine's initialisation.

    Source: "Acquisition of Localization Confidence for Accurate Object
    Detection", ECCV 2018, arXiv 1807.11590, algorithm 2. f is scaled to
    [-1, 1] there in training; whether its thresholds mean the scaled IoU is
    not said, here they do.
    """

    def __init__(
        self,
        roi_extractor: dict,
        head: dict,
        loss: dict,
        num_steps: int = 5,
        step_length: float = 0.5,
        min_change: float = 0.001,
        max_fall: float = 0.01,
        min_box_size: float = 2.0,
        fix_level: bool = True,
        uncertainty: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            roi_extractor,
            head,
            loss,
            num_steps=num_steps,
            step_length=(step_length, step_length),
            min_box_size=min_box_size,
            fix_level=fix_level,
            uncertainty=uncertainty,
            init_cfg=init_cfg,
        )
        self.min_change = min_change
        self.max_fall = max_fall

    def ascend(
        self, corner_logdensity_fn: LogDensityFn, corners: Tensor
    ) -> tuple[Tensor, AscentResult]:
        """See ``EnergyRefiner.ascend``."""

        def step_length(current: Tensor) -> Tensor:
            sides = (current[..., 2:] - current[..., :2]).clamp(min=0)
            return self.step_length[0] * sides.repeat(1, 1, 2)

        result = stopping_ascent(
            corner_logdensity_fn,
            corners[:, None],
            step_length,
            self.num_steps,
            self.min_change,
            self.max_fall,
        )
        return result.y[:, 0], result
