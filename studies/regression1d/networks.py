r"""The paper's small network for f(x, y), alone and as an ensemble.

x passes two ReLU layers, y one tanh layer; three joint tanh layers follow, the
last two of them residual, and a linear output:

.. math::
    h_x &= \mathrm{relu}(W_2\, \mathrm{relu}(W_1 x)), \qquad
    h_y = \tanh(W_y y) \\
    h_1 &= \tanh(W_a [h_x; h_y]), \quad
    h_2 = h_1 + \tanh(W_b h_1), \quad
    h_3 = h_2 + \tanh(W_c h_2), \quad f = w^T h_3

(biases everywhere). Width 10.

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, section 4.1 and its supplement.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet_ebm.core import LogDensityFn

# Weights (E, out, in) and biases (E, out, 1) by name.
Parameters = dict[str, Tensor]


def candidates_per_pass(device: torch.device) -> int:
    """How many values of f to compute at once, over all models.

    On a CPU, few enough that their features stay in the cache.
    """
    return 2**15 if device.type == 'cpu' else 2**22


def layer_shapes(width: int) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer."""
    return dict(
        x1=(width, 1),
        x2=(width, width),
        y=(width, 1),
        joint1=(width, 2 * width),
        joint2=(width, width),
        joint3=(width, width),
        out=(1, width),
    )


class PlainNetwork(nn.Module):
    """One network, as its formula reads: what the ensemble is tested against.

    Args:
        width: Hidden width.
    """

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        for name, (num_out, num_in) in layer_shapes(width).items():
            setattr(self, name, nn.Linear(num_in, num_out))

    def logdensity_fn(self, x: Tensor) -> LogDensityFn:
        """The log-density function of instances x (B,)."""
        x_features = self.x2(self.x1(x[:, None]).relu()).relu()

        def logdensity(y: Tensor) -> Tensor:
            """y (B, S, 1) -> f (B, S)."""
            y_features = self.y(y).tanh()
            both = [x_features[:, None].expand_as(y_features), y_features]
            hidden = self.joint1(torch.cat(both, -1)).tanh()
            hidden = hidden + self.joint2(hidden).tanh()
            hidden = hidden + self.joint3(hidden).tanh()
            return self.out(hidden)[..., 0]

        return logdensity


class EnsembleNetwork(nn.Module):
    """E networks with parameters (E, out, in), evaluated in batches.

    Args:
        num_models: E.
        width: Hidden width.
        generators: One for each model, for its initialisation; the global
            one without them.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        num_models: int,
        width: int = 10,
        generators: Sequence[torch.Generator] | None = None,
    ) -> None:
        super().__init__()
        if num_models < 1 or width < 1:
            raise ValueError(
                'expected at least one model and a width of at '
                f'least 1, got {num_models} and {width}'
            )
        generators = generators or [None] * num_models
        models = [_initial_parameters(width, g) for g in generators]
        for name in models[0]:
            self.register_parameter(
                name, nn.Parameter(torch.stack([m[name] for m in models]))
            )

    def parameters_of(self, models: slice) -> Parameters:
        """Leaves that share the memory of some models' parameters."""
        return {
            name: parameter.detach()[models].requires_grad_()
            for name, parameter in self.named_parameters()
        }

    def logdensity_fn(self, x: Tensor) -> LogDensityFn:
        """:func:`ensemble_logdensity_fn` of the own parameters."""
        return ensemble_logdensity_fn(dict(self.named_parameters()), x)


def ensemble_logdensity_fn(parameters: Parameters, x: Tensor) -> LogDensityFn:
    """The log-density function of a batch of instances for each model.

    Features come first and candidates last in memory, (E, width, n): every
    elementwise pass is contiguous. x features are computed once for each x,
    not for each candidate.

    Args:
        parameters: Of E models.
        x: (E, B).

    Returns:
        y (E * B, S, 1) -> f (E * B, S), differentiable any number of times;
        instances of the first model first.
    """

    def affine(layer: str, features: Tensor) -> Tensor:
        return torch.baddbmm(
            parameters[f'{layer}_bias'],
            parameters[f'{layer}_weight'],
            features,
        )

    num_models, batch_size = x.shape
    x_features = affine('x2', affine('x1', x[:, None]).relu()).relu()
    width = x_features.shape[1]
    x_weight, y_weight = parameters['joint1_weight'].split(width, dim=2)
    # (E, width, B, 1): what the first joint layer gets from x.
    x_part = torch.baddbmm(parameters['joint1_bias'], x_weight, x_features)
    x_part = x_part[..., None]

    def logdensity(y: Tensor) -> Tensor:
        num_samples = y.shape[1]
        y = y.reshape(num_models, 1, batch_size * num_samples)
        y_part = torch.bmm(y_weight, affine('y', y).tanh())
        by_instance = (num_models, width, batch_size, num_samples)
        hidden = (x_part + y_part.view(by_instance)).tanh().view_as(y_part)
        hidden = hidden + affine('joint2', hidden).tanh()
        hidden = hidden + affine('joint3', hidden).tanh()
        f = affine('out', hidden)
        return f.view(num_models * batch_size, num_samples)

    return logdensity


def _initial_parameters(width, generator):
    """nn.Linear's default: weights and biases U(-1, 1) / sqrt(inputs)."""
    parameters = {}
    for layer, (num_out, num_in) in layer_shapes(width).items():
        for kind, shape in (
            ('weight', (num_out, num_in)),
            ('bias', (num_out, 1)),
        ):
            uniform = 2 * torch.rand(shape, generator=generator) - 1
            parameters[f'{layer}_{kind}'] = uniform / math.sqrt(num_in)
    return parameters
