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

from ..core import LogDensityFn
from .fused import joint_logdensity

# Weights (E, out, in) and biases (E, out, 1) by name.
Parameters = dict[str, Tensor]


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

    Features come first and candidates last in memory, so that every
    elementwise pass is contiguous; x features are computed once for each x,
    not for each candidate.

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

    @classmethod
    def from_models(cls, models: Sequence[PlainNetwork]) -> 'EnsembleNetwork':
        """An ensemble with copies of the parameters of plain networks."""
        ensemble = cls(len(models), models[0].x1.out_features)
        with torch.no_grad():
            for name, parameter in ensemble.named_parameters():
                layer, kind = name.rsplit('_', 1)
                values = [getattr(getattr(m, layer), kind) for m in models]
                parameter.copy_(torch.stack(values).view_as(parameter))
        return ensemble

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

    Args:
        parameters: Of E models.
        x: (E, B).

    Returns:
        y (E * B, S, 1) -> f (E * B, S); instances of the first model first.
    """
    p = parameters
    num_models, batch_size = x.shape
    features = _affine(p, 'x2', _affine(p, 'x1', x[:, None]).relu()).relu()
    width = features.shape[1]
    joint_x, joint_y = p['joint1_weight'].split(width, dim=2)
    # (E, width, B): all that the joint layers need to know of x.
    context = torch.baddbmm(p['joint1_bias'], joint_x, features)
    layers = (
        p['y_weight'],
        p['y_bias'],
        joint_y,
        p['joint2_weight'],
        p['joint2_bias'],
        p['joint3_weight'],
        p['joint3_bias'],
        p['out_weight'],
        p['out_bias'],
    )

    def logdensity(y: Tensor) -> Tensor:
        num_samples = y.shape[1]
        f = joint_logdensity(
            y.reshape(num_models, batch_size * num_samples), context, layers
        )
        return f.view(num_models * batch_size, num_samples)

    return logdensity


def _affine(parameters, layer, x):
    return torch.baddbmm(
        parameters[f'{layer}_bias'], parameters[f'{layer}_weight'], x
    )


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
