"""The training methods as mmdet loss components, to be named in a config."""

import inspect
from typing import Any, ClassVar

import torch
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

from ... import core
from ...core import LogDensityFn, LossInfo

REDUCTIONS = ('none', 'mean', 'sum')
# Widths of the noise that are to be measured, instead of numbers.
MEASURED = 'measured'
# The settings that are widths, and how many of them there are, as multiples of
# the spread of the detector's errors. (0.075, 0.15, 0.3), the published noise,
# has the same proportions. Twice the spread reaches as far as boxes err.
_MULTIPLES = dict(sigmas=(0.5, 1.0, 2.0), sigma=(1.0,))
# Spread that stands in until it is measured; nothing is trained with it.
_PLACEHOLDER = 0.075


class EnergyLoss(nn.Module):
    """A training method with mmdet's weighting and reduction around it.

    A subclass names its method and the published settings of it.

    With 'measured' in place of ``sigmas`` or ``sigma``, the noise is as wide
    as the detector's errors: half their spread, the spread and twice the
    spread (the spread itself for ``sigma``), each for x, y, log w and log h.
    The spread is part of the state, so checkpoints hold it.

    Args:
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor on the loss.
        **settings: Arguments of ``method_class``, in place of ``defaults``.

    Attributes:
        method: The training method, of ``mmdet_ebm.core``.
        spread: (4,) spread of the detector's errors in relative space, NaN
            until :meth:`set_spread`; None where widths are numbers.

    Raises:
        ValueError: If a setting is unknown or its value does not fit.
    """

    method_class: ClassVar[type[nn.Module]]
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        known = [
            name
            for name in inspect.signature(self.method_class).parameters
            if name not in ('args', 'kwargs')
        ]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            known += ['reduction', 'loss_weight']
            raise ValueError(
                f'{type(self).__name__} has no setting {", ".join(unknown)}; '
                f'its settings are {", ".join(known)}'
            )
        self._settings = {**self.defaults, **settings}
        self._measured = [
            name for name in _MULTIPLES if self._settings.get(name) == MEASURED
        ]
        self._has_spread = False
        spread = None
        if self._measured:
            spread = torch.full((4,), torch.nan)
        self.register_buffer('spread', spread)
        self.method = self._build()
        self.reduction = _checked_reduction(reduction)
        self.loss_weight = loss_weight

    def _known_spread(self) -> Tensor:
        if self._has_spread:
            return self.spread
        # As many numbers, so that copies of the model have equal buffers.
        return torch.full((4,), _PLACEHOLDER)

    def _build(self) -> nn.Module:
        spread = self._known_spread()
        widths = {
            name: _widths(name, spread).tolist() for name in self._measured
        }
        if 'sigma' in widths:  # one width for each dimension
            widths['sigma'] = widths['sigma'][0]
        return self.method_class(**{**self._settings, **widths})

    @property
    def sigmas(self) -> list[list[float]] | None:
        """Widths of noise around a box; None where the method has none."""
        if self._measured:
            return _widths('sigmas', self._known_spread()).tolist()
        noise = getattr(self.method, 'noise', None)
        return None if noise is None else noise.sigmas.tolist()

    def set_spread(self, spread: Tensor) -> None:
        """Set the noise where its widths are to be measured.

        Args:
            spread: (4,) spread of the detector's errors in x, y, log w and
                log h of the relative space.

        Raises:
            ValueError: If widths are numbers, or the spread is not positive.
        """
        if not self._measured:
            raise ValueError(
                f'the noise of this {type(self).__name__} is not measured; '
                f"expected sigmas='{MEASURED}' in its config"
            )
        if (
            spread.shape != (4,)
            or not ((spread > 0) & spread.isfinite()).all()
        ):
            raise ValueError(
                'the spread must be four positive numbers, for x, y, log w '
                f'and log h; got {spread.tolist()}'
            )
        self.spread.copy_(spread)
        self._has_spread = True
        # Methods have no weights, so a new one is as good.
        self.method = self._build().to(self.spread.device)

    def forward(
        self,
        logdensity_fn: LogDensityFn,
        targets: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
        reduction_override: str | None = None,
    ) -> tuple[Tensor, LossInfo]:
        """Weighted and reduced loss.

        Args:
            logdensity_fn: Candidates (N, S, D) -> log-densities (N, S).
            targets: (N, D).
            weight: (N,) weights of the instances.
            avg_factor: What 'mean' divides by, a number or a scalar tensor;
                the number of instances without it.
            reduction_override: Replaces ``reduction`` for this call.

        Returns:
            A scalar, or (N,) for the reduction 'none', and the log-densities
            that the method saw. Zero with a graph when there are no
            instances.

        Raises:
            ValueError: If the noise is to be measured and has not been.
        """
        if self._measured and not self._has_spread:
            raise ValueError(
                f'the noise of {type(self).__name__} is to be measured '
                f"({self._measured[0]}='{MEASURED}') and has not been. Train "
                'with tools/train.py, or add custom_hooks = [dict(type='
                "'MeasureNoiseHook')] and the import 'mmdet_ebm.engine' to "
                'the config, or give numbers'
            )
        reduction = _checked_reduction(reduction_override or self.reduction)
        losses, info = self.method(logdensity_fn, targets)
        if reduction == 'mean' and avg_factor is None:
            avg_factor = max(len(losses), 1)  # the mean of nothing is zero
        loss = weight_reduce_loss(losses, weight, reduction, avg_factor)
        return self.loss_weight * loss, info


@MODELS.register_module()
class NCEPlusLoss(EnergyLoss):
    """NCE+; settings of :class:`mmdet_ebm.core.NCEPlus`, as published."""

    method_class = core.NCEPlus
    defaults = dict(sigmas=(0.075, 0.15, 0.3), num_samples=127, beta=0.1)


@MODELS.register_module()
class NCELoss(EnergyLoss):
    """NCE; settings of :class:`mmdet_ebm.core.NCE`, as published."""

    method_class = core.NCE
    defaults = dict(sigmas=(0.075, 0.15, 0.3), num_samples=127)


@MODELS.register_module()
class MLISLoss(EnergyLoss):
    """ML-IS; settings of :class:`mmdet_ebm.core.MLIS`, as published."""

    method_class = core.MLIS
    defaults = dict(sigmas=(0.0375, 0.075, 0.15), num_samples=128)


@MODELS.register_module()
class KLDISLoss(EnergyLoss):
    """KLD-IS; settings of :class:`mmdet_ebm.core.KLDIS`, as published."""

    method_class = core.KLDIS
    defaults = dict(
        sigmas=(0.0375, 0.075, 0.15), num_samples=128, sigma_gt=0.0225
    )


@MODELS.register_module()
class MLMCMCLoss(EnergyLoss):
    """ML-MCMC-L; settings of :class:`mmdet_ebm.core.MLMCMC`, as published."""

    method_class = core.MLMCMC
    defaults = dict(step_size=1e-5, num_steps=8, num_samples=128)


@MODELS.register_module()
class SMLoss(EnergyLoss):
    """Score matching; see :class:`mmdet_ebm.core.SM`.

    The energy head needs a smooth activation, such as ``act_cfg=dict(
    type='SiLU')``. Its authors did not run it on detection.
    """

    method_class = core.SM


@MODELS.register_module()
class DSMLoss(EnergyLoss):
    """DSM; settings of :class:`mmdet_ebm.core.DSM`, as published.

    With a ReLU head its parameter gradient is biased, see there.
    """

    method_class = core.DSM
    defaults = dict(sigma=0.075, num_samples=128)


@MODELS.register_module()
class LocalizationConfidenceLoss(EnergyLoss):
    """IoU-Net's loss; settings of :class:`mmdet_ebm.core.IoUNet`.

    It trains the head to predict the IoU of jittered boxes. mmdet's own
    IoU losses compare a predicted box with a target and are another thing.
    """

    method_class = core.IoUNet
    defaults = dict(num_samples=128, min_iou=0.5)


def _widths(name: str, spread: Tensor) -> Tensor:
    """Widths (K, 4) of the noise that fits a spread (4,) of errors."""
    return spread.new_tensor(_MULTIPLES[name])[:, None] * spread


def _checked_reduction(reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise ValueError(
            f'reduction must be one of {", ".join(REDUCTIONS)}; got '
            f'{reduction!r}'
        )
    return reduction
