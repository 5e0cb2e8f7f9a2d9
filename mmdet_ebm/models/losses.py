"""The training methods as mmdet loss components, to be named in a config."""

from collections.abc import Sequence

from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..core import (
    DSM,
    KLDIS,
    MLIS,
    MLMCMC,
    NCE,
    SM,
    IoUNet,
    LogDensityFn,
    NCEPlus,
)


class EnergyLoss(nn.Module):
    """A training method with mmdet's weighting and reduction around it.

    Args:
        method: ``method(logdensity_fn, targets) -> (N,)`` losses.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self, method: nn.Module, reduction: str, loss_weight: float
    ) -> None:
        super().__init__()
        self.method = method
        self.reduction = _checked_reduction(reduction)
        self.loss_weight = loss_weight

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Weighted and reduced loss.

        Args:
            logdensity_fn: Candidates (N, S, D) -> log-densities (N, S).
            targets: (N, D).
            weight: (N,) weights of the instances.
            avg_factor: What 'mean' divides by, a number or a scalar tensor;
                the number of instances without it.
            reduction_override: Replaces ``reduction`` for this call.

        Returns:
            A scalar, or (N,) for the reduction 'none'. Zero with a graph when
            there are no instances.
        """
        return self.reduce(
            self.method(logdensity_fn, targets),
            weight,
            avg_factor,
            reduction_override,
        )

    def reduce(
        self,
        losses: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """What :meth:`forward` makes of the method's losses (N,)."""
        reduction = _checked_reduction(reduction_override or self.reduction)
        if reduction == 'mean' and avg_factor is None:
            avg_factor = max(len(losses), 1)  # the mean of nothing is zero
        return self.loss_weight * weight_reduce_loss(
            losses, weight, reduction, avg_factor
        )


@MODELS.register_module()
class NCEPlusLoss(EnergyLoss):
    """NCE+; see :class:`mmdet_ebm.core.NCEPlus`. Defaults as published.

    Args:
        sigmas: Widths of the noise in relative box space.
        num_samples: Noise samples per object, beside the positive.
        beta: Width of the positive's shift relative to the noise.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self,
        sigmas: Sequence = (0.075, 0.15, 0.3),
        num_samples: int = 127,
        beta: float = 0.1,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            NCEPlus(sigmas, num_samples, beta), reduction, loss_weight
        )


@MODELS.register_module()
class NCELoss(EnergyLoss):
    """NCE; see :class:`mmdet_ebm.core.NCE`. Defaults as published.

    Args:
        sigmas: Widths of the noise in relative box space.
        num_samples: Noise samples per object, beside the positive.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self,
        sigmas: Sequence = (0.075, 0.15, 0.3),
        num_samples: int = 127,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(NCE(sigmas, num_samples), reduction, loss_weight)


@MODELS.register_module()
class MLISLoss(EnergyLoss):
    """ML-IS; see :class:`mmdet_ebm.core.MLIS`. Defaults as published.

    Args:
        sigmas: Widths of the proposal q in relative box space.
        num_samples: Samples of q per object.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self,
        sigmas: Sequence = (0.0375, 0.075, 0.15),
        num_samples: int = 128,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(MLIS(sigmas, num_samples), reduction, loss_weight)


@MODELS.register_module()
class KLDISLoss(EnergyLoss):
    """KLD-IS; see :class:`mmdet_ebm.core.KLDIS`. Defaults as published.

    Args:
        sigmas: Widths of the proposal q in relative box space.
        num_samples: Samples of q per object.
        sigma_gt: Width of the Gaussian around the target.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self,
        sigmas: Sequence = (0.0375, 0.075, 0.15),
        num_samples: int = 128,
        sigma_gt: float = 0.0225,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            KLDIS(sigmas, num_samples, sigma_gt), reduction, loss_weight
        )


@MODELS.register_module()
class MLMCMCLoss(EnergyLoss):
    """ML-MCMC-L; see :class:`mmdet_ebm.core.MLMCMC`. Defaults as published.

    Args:
        step_size: lambda of the Langevin chains, in relative box space.
        num_steps: L, steps of a chain.
        num_samples: Chains per object.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self,
        step_size: float = 1e-5,
        num_steps: int = 8,
        num_samples: int = 128,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            MLMCMC(step_size, num_steps, num_samples), reduction, loss_weight
        )


@MODELS.register_module()
class SMLoss(EnergyLoss):
    """Score matching; see :class:`mmdet_ebm.core.SM`.

    The energy head needs a smooth activation, such as ``act_cfg=dict(
    type='SiLU')``. Not run on detection by its authors.

    Args:
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self, reduction: str = 'mean', loss_weight: float = 1.0
    ) -> None:
        super().__init__(SM(), reduction, loss_weight)


@MODELS.register_module()
class DSMLoss(EnergyLoss):
    """DSM; see :class:`mmdet_ebm.core.DSM`. Defaults as published.

    With a ReLU head its parameter gradient is biased, see there.

    Args:
        sigma: Width of the noise in relative box space.
        num_samples: Samples per object.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self,
        sigma: float = 0.075,
        num_samples: int = 128,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(DSM(sigma, num_samples), reduction, loss_weight)


@MODELS.register_module()
class LocalizationConfidenceLoss(EnergyLoss):
    """IoU-Net's loss; see :class:`mmdet_ebm.core.IoUNet`.

    It trains the head to predict the IoU of jittered boxes. mmdet's own
    IoU losses compare a predicted box with a target and are another thing.

    Args:
        num_samples: Jittered boxes per object.
        min_iou: Their lowest IoU.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
    """

    def __init__(
        self,
        num_samples: int = 128,
        min_iou: float = 0.5,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(IoUNet(num_samples, min_iou), reduction, loss_weight)


def _checked_reduction(reduction: str) -> str:
    if reduction not in ('none', 'mean', 'sum'):
        raise ValueError(
            f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}"
        )
    return reduction
