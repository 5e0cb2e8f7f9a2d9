"""Training of all models of an experiment at once.

Every model has random streams of its own, for its training set and order and
for the method's samples. So a model of an ensemble is the model that a
separate run gives, whatever the size of the ensemble.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdet_ebm.core import LogDensityFn

from .data import draw_points, get_problem
from .networks import (
    EnsembleNetwork,
    candidates_per_pass,
    ensemble_logdensity_fn,
)
from .settings import TrainingSettings, require_count


def method_losses(
    method: nn.Module,
    logdensity_fn: LogDensityFn,
    targets: Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Losses (N,) of a training method; the one place that calls it.

    Args:
        method: One of mmdet_ebm.core.
        logdensity_fn: y (N, S, 1) -> f (N, S).
        targets: (N, 1).
        generator: Source of the method's samples. Several of them supply
            equal shares of the instances.
    """
    losses, _ = method(logdensity_fn, targets, generator)
    return losses


class EnsembleTrainer:
    """Adam on E independent models.

    The loss is the sum over models of the mean over each one's batch; Adam
    works element by element, so no model notices the others.

    Args:
        dataset: 1 or 2.
        method: One of mmdet_ebm.core.
        settings: See :class:`TrainingSettings`.
        device: Where to compute.
        num_threads: Passes at the same time, on a CPU. Results depend
            neither on this nor on how many models share a pass.

    Attributes:
        network: The ensemble.
        epoch: Epochs done.

    Raises:
        ValueError: If the data set is unknown or ``num_threads`` below 1.
    """

    def __init__(
        self,
        dataset: int,
        method: nn.Module,
        settings: TrainingSettings,
        device: str = 'cpu',
        num_threads: int = 1,
    ) -> None:
        self.device = torch.device(device)
        require_count('num_threads', num_threads)
        self.settings = settings
        self.method = method.to(self.device)
        self.num_threads = num_threads
        num_models = settings.num_models
        # Score matching evaluates f at the target alone.
        num_samples = getattr(method, 'num_samples', 1)
        fitting = candidates_per_pass(self.device) // (
            settings.batch_size * num_samples
        )
        share = math.ceil(num_models / num_threads)
        models_per_pass = max(1, min(fitting, share))
        self.passes = [
            slice(start, start + models_per_pass)
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
        losses = method_losses(
            self.method,
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
