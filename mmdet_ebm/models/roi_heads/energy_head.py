"""The network from pooled features to a log-density."""

import copy
import math

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

_ROWS_FROM_THE_LEFT = 64


@MODELS.register_module()
class EnergyHead(BaseModule):
    r"""Fully connected layers with one log-density per class.

    :math:`f(x, y) = w_c^\top h(\mathrm{pool}(x, y)) + b_c` for class c. The
    layers are IoU-Net's; hidden ones start from a uniform fan-in
    initialisation, the last one near zero.

    Args:
        num_classes: Classes of the detector.
        in_channels: Channels of the feature maps.
        roi_feat_size: Bins along y and x, one number or a pair.
        fc_out_channels: Width of the hidden layers.
        num_fcs: Number of hidden layers.
        class_agnostic: One log-density for all classes.
        reduced_channels: Channels that a linear map leaves of each bin's
            before the first layer, which is nearly all of the head's cost: a
            lighter head. None, as published, for all of them.
        act_cfg: Activation. ReLU is the published one; a log-density that is
            to have curvature in the box needs a smooth one, such as SiLU.
        init_cfg: mmengine's initialisation, overriding the published one.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        roi_feat_size: int | tuple[int, int] = 7,
        fc_out_channels: int = 1024,
        num_fcs: int = 2,
        class_agnostic: bool = False,
        reduced_channels: int | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if num_classes < 1 or num_fcs < 1:
            raise ValueError(
                'num_classes and num_fcs must be positive, got '
                f'{num_classes} and {num_fcs}'
            )
        if reduced_channels is not None and not (
            1 <= reduced_channels <= in_channels
        ):
            raise ValueError(
                'reduced_channels must lie between 1 and the '
                f'{in_channels} in_channels, got '
                f'{reduced_channels}'
            )
        if init_cfg is None:
            init_cfg = dict(
                type='Kaiming',
                layer='Linear',
                a=1,
                mode='fan_in',
                nonlinearity='leaky_relu',
                distribution='uniform',
                override=dict(type='Normal', name='fc_logdensity', std=0.001),
            )
        super().__init__(init_cfg=init_cfg)
        bins = (
            (roi_feat_size, roi_feat_size)
            if isinstance(roi_feat_size, int)
            else tuple(roi_feat_size)
        )
        self.num_classes = num_classes
        self.class_agnostic = class_agnostic
        self.in_shape = (in_channels, *bins)
        self.reduction = None
        first_shape = self.in_shape
        if reduced_channels is not None:
            self.reduction = ChannelReduction(in_channels, reduced_channels)
            first_shape = (reduced_channels, *bins)
        layers = []
        for i in range(num_fcs):
            layers.append(
                nn.Linear(fc_out_channels, fc_out_channels)
                if i
                else PooledLinear(first_shape, fc_out_channels)
            )
            layers.append(
                build_activation_layer(dict(act_cfg or dict(type='ReLU')))
            )
        self.shared_fcs = nn.Sequential(*layers)
        self.fc_logdensity = nn.Linear(
            fc_out_channels, 1 if class_agnostic else num_classes
        )

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Log-density of each pooled box for its class.

        Args:
            pooled: (R, C, P, Q) features of R boxes.
            labels: (R,) int64 in [0, num_classes).

        Returns:
            (R,) in at least float32.

        Raises:
            ValueError: If the pooled features do not have the head's shape.
        """
        if tuple(pooled.shape[1:]) != self.in_shape:
            raise ValueError(
                'the energy head was built for pooled features of shape (R, '
                f'{", ".join(map(str, self.in_shape))}) and got '
                f'{tuple(pooled.shape)}; check in_channels and roi_feat_size'
            )
        if self.reduction is not None:
            pooled = self.reduction(pooled)
        logdensities = self.fc_logdensity(self.shared_fcs(pooled))
        if self.class_agnostic:
            column = logdensities[:, 0]
        else:
            column = logdensities.gather(1, labels[:, None])[:, 0]
        return column.to(torch.promote_types(column.dtype, torch.float32))

    def has_curvature(self) -> bool:
        """Whether automatic differentiation sees all curvature of f.

        It does if the second derivative that it gives for the activation
        integrates to the change of slope; a kink's share would be missing.
        """
        # layers alternate: linear, activation
        return all(_is_smooth(layer) for layer in self.shared_fcs[1::2])


class PooledLinear(nn.Linear):
    """Linear layer on pooled features, without a copy of either.

    Pooling yields channels-last memory, and so lies the weight
    (out_features, C, P, Q); both are flattened as they are.

    Args:
        in_shape: C, P, Q.
        out_features: Width of the output.
    """

    def __init__(
        self, in_shape: tuple[int, int, int], out_features: int
    ) -> None:
        super().__init__(math.prod(in_shape), out_features)
        self.weight = nn.Parameter(
            self.weight.detach()
            .view(out_features, *in_shape)
            .contiguous(memory_format=torch.channels_last)
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, P, Q) -> (R, out_features)."""
        # (R, P * Q * C), and the weight likewise.
        flat = pooled.permute(0, 2, 3, 1).flatten(1)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        if flat.device.type == 'cpu' and len(flat) >= _ROWS_FROM_THE_LEFT:
            # The same product from the other side is a sixth faster for a
            # hundred boxes, but its layout costs more than that for a few.
            return torch.addmm(self.bias[:, None], weight, flat.t()).t()
        return F.linear(flat, weight, self.bias)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # An ordinary linear layer's weight, of features flattened as C, P, Q.
        weight = state_dict.get(prefix + 'weight')
        if weight is not None and weight.shape == (
            self.out_features,
            self.in_features,
        ):
            state_dict[prefix + 'weight'] = weight.view_as(self.weight)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ChannelReduction(nn.Linear):
    """The same linear map of the channels of every bin.

    Pooling is linear, so pooling maps of fewer channels would give the same.
    """

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, P, Q) -> (R, c, P, Q), channels last in memory."""
        return super().forward(pooled.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _is_smooth(activation: nn.Module) -> bool:
    activation = copy.deepcopy(activation).to('cpu', torch.float64)
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.linspace(
            -6, 6, 2001, dtype=torch.float64, device='cpu'
        ).requires_grad_()
        # A function of its own for each x; inplace ones need a copy.
        (slope,) = torch.autograd.grad(
            activation(x.clone()).sum(), x, create_graph=True
        )
        if not slope.requires_grad:
            return False
        (curvature,) = torch.autograd.grad(slope.sum(), x, allow_unused=True)
    if curvature is None:
        return False
    change = slope[1:] - slope[0]
    integral = torch.cumulative_trapezoid(curvature, x)
    return bool((integral - change).abs().max() < 0.01)
