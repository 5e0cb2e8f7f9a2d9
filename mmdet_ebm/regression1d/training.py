"""Training of all models of an experiment at once.

Every model has random streams of its own, for its training set and order and
for the method's samples. So a model of an ensemble is the model that a
separate run gives, whatever the size of the ensemble.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import core
from ..core.losses.checks import positive, positive_int
from .data import draw_points, get_problem
from .native import joint_library
from .networks import EnsembleNetwork, ensemble_logdensity_fn

METHODS = ('MLIS', 'KLDIS', 'MLMCMC', 'NCE', 'NCEPlus', 'SM', 'DSM')

# On a CPU: enough that small operations do not count, few enough that what a
# pass touches stays in the cache, and that threads find work.
MODELS_PER_PASS = 10


def build_method(config: dict[str, Any]) -> nn.Module:
    """A training method from ``dict(type='NCEPlus', sigmas=..., ...)``.

    Raises:
        ValueError: If the type is unknown or its settings do not fit.
    """
    settings = dict(config)
    kind = settings.pop('type', None)
    if kind not in METHODS:
        raise ValueError(
            f'method type must be one of {", ".join(METHODS)}, got {kind!r}'
        )
    try:
        return getattr(core, kind)(**settings)
    except TypeError as error:
        raise ValueError(f'settings of {kind}: {error}') from error


@dataclass(frozen=True)
class TrainingSettings:
    """What a training is, apart from the method. Defaults as published.

    Attributes:
        num_models: E.
        seed: Model i follows from the pair (seed, i).
        num_points: Training points of each model.
        batch_size: The last batch of an epoch may be smaller.
        num_epochs: Epochs.
        lr: Learning rate of Adam.
        width: Hidden width of the networks.
        label_noise: Standard deviation of Gaussian noise on the targets.

    Raises:
        ValueError: If a number is out of range.
    """

    num_models: int = 20
    seed: int = 0
    num_points: int = 2000
    batch_size: int = 32
    num_epochs: int = 75
    lr: float = 1e-3
    width: int = 10
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            'num_models',
            'num_points',
            'batch_size',
            'num_epochs',
            'width',
        ):
            positive_int(name, getattr(self, name))
        positive('lr', self.lr)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(
                f'seed must be a whole number of at least 0, got {self.seed!r}'
            )
        if not 0 <= self.label_noise < math.inf:
            raise ValueError(
                'label_noise must be at least 0 and finite, got '
                f'{self.label_noise!r}'
            )


class EnsembleTrainer:
    """Adam on E independent models.

    The loss is the sum over models of the mean over each one's batch; Adam
    works element by element, so no model notices the others.

    Args:
        dataset: 1 or 2.
        method: ``method(logdensity_fn, targets, generator) -> losses``.
        settings: See :class:`TrainingSettings`.
        device: Where to compute.
        models_per_pass: Models that one forward and backward pass takes;
            results do not depend on it. By default all on a GPU, on a CPU
            ``MODELS_PER_PASS`` with the compiled kernels and one without:
            then features of more than one do not fit in the cache.
        num_threads: Passes at the same time, on a CPU.

    Attributes:
        network: The ensemble.
        epoch: Epochs done.

    Raises:
        ValueError: If the data set is unknown or a number is below 1.
    """

    def __init__(
        self,
        dataset: int,
        method: nn.Module,
        settings: TrainingSettings,
        device: str = 'cpu',
        models_per_pass: int | None = None,
        num_threads: int = 1,
    ) -> None:
        self.device = torch.device(device)
        num_models = settings.num_models
        if models_per_pass is None:
            models_per_pass = num_models
            if self.device.type == 'cpu':
                compiled = joint_library(settings.width) is not None
                models_per_pass = MODELS_PER_PASS if compiled else 1
        positive_int('models_per_pass', models_per_pass)
        positive_int('num_threads', num_threads)
        self.settings = settings
        self.method = method.to(self.device)
        self.num_threads = num_threads
        self.passes = [
            slice(start, min(start + models_per_pass, num_models))
            for start in range(0, num_models, models_per_pass)
        ]
        # On the CPU: initialisation, training set, order of the points.
        self.generators = _generators(settings, 0, 'cpu')
        # The method's samples, drawn where they are used.
        self.noise_generators = _generators(settings, 1, self.device)
        self.network = EnsembleNetwork(
            num_models, settings.width, self.generators
        ).to(self.device)
        problem = get_problem(dataset)
        points = [
            draw_points(
                problem, settings.num_points, generator, settings.label_noise
            )
            for generator in self.generators
        ]
        self.x, self.y = (
            torch.stack(values).to(self.device) for values in zip(*points)
        )  # (E, num_points)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=settings.lr
        )
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.epoch = 0

    def train_epoch(self) -> Tensor:
        """One epoch; the mean loss of each model (E,), on the CPU."""
        size = self.settings.num_points
        order = torch.stack(
            [
                torch.randperm(size, generator=generator)
                for generator in self.generators
            ]
        )
        order = order.to(self.device)
        total = torch.zeros(self.settings.num_models, device=self.device)
        with ThreadPoolExecutor(self.num_threads) as pool:
            run = map if self.num_threads == 1 else pool.map
            for index in order.split(self.settings.batch_size, 1):
                x, y = self.x.gather(1, index), self.y.gather(1, index)
                losses = list(run(partial(self._backward, x, y), self.passes))
                self.optimizer.step()
                total += torch.cat(losses) * index.shape[1]
        self.epoch += 1
        return total.cpu() / size

    def _backward(self, x: Tensor, y: Tensor, models: slice) -> Tensor:
        """Put the gradients of some models in place; return their losses."""
        parameters = self.network.parameters_of(models)
        losses = self.method(
            ensemble_logdensity_fn(parameters, x[models]),
            y[models].reshape(-1, 1),
            self.noise_generators[models],
        )
        losses = losses.view(-1, x.shape[1]).mean(1)
        # Score matching does not depend on the output's bias.
        gradients = torch.autograd.grad(
            losses.sum(), list(parameters.values()), materialize_grads=True
        )
        for parameter, gradient in zip(self.network.parameters(), gradients):
            parameter.grad[models] = gradient
        return losses.detach()

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        return dict(
            settings=asdict(self.settings),
            epoch=self.epoch,
            network=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            generators=[g.get_state() for g in self.generators],
            noise_generators=[g.get_state() for g in self.noise_generators],
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: If it is of a training with other settings.
        """
        own = asdict(self.settings)
        # More epochs may follow than were planned.
        if {**state['settings'], 'num_epochs': own['num_epochs']} != own:
            raise ValueError(
                'the checkpoint is of a training with other '
                f'settings: {state["settings"]}; expected {own}'
            )
        self.epoch = state['epoch']
        self.network.load_state_dict(state['network'])
        self.optimizer.load_state_dict(state['optimizer'])
        for generators, states in (
            (self.generators, state['generators']),
            (self.noise_generators, state['noise_generators']),
        ):
            for generator, own_state in zip(generators, states):
                generator.set_state(own_state.cpu())


def _generators(
    settings: TrainingSettings, stream: int, device
) -> list[torch.Generator]:
    """One generator for each model, from (seed, model, stream)."""
    seeds = [
        np.random.SeedSequence((settings.seed, model, stream))
        for model in range(settings.num_models)
    ]
    return [
        torch.Generator(device).manual_seed(
            int(seed.generate_state(1, np.uint64)[0] >> 1)
        )
        for seed in seeds
    ]
