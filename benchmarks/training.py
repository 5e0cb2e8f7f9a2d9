"""A training step against the published one, and its noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmdet_ebm.core import GaussianMixtureNoise
from mmdet_ebm.models import EnergyModel

from .published import (
    BETA,
    NUM_SAMPLES,
    SIGMAS,
    nce_step,
    sample_noise_of_object,
)
from .scene import REDUCTION, Run, Scene, build_scene
from .timing import peak_memory, time_in_turn


def training(run: Run) -> None:
    """Noise and the whole step of 16 images x 7 objects x 128 candidates."""
    _compare_noise(run)
    _compare_steps(run)


def _compare_noise(run: Run) -> None:
    number = run.sizes.noise
    noise = GaussianMixtureNoise(SIGMAS).to(run.device)
    like = torch.empty(0, device=run.device)

    def sample_all() -> None:
        offsets = noise.sample((number, NUM_SAMPLES + 1, 4), like)
        noise.logprob(offsets)

    def sample_in_a_loop() -> None:
        for _ in range(number):
            sample_noise_of_object(SIGMAS, NUM_SAMPLES + 1)

    seconds = time_in_turn(
        {'all at once': sample_all, 'object by object': sample_in_a_loop},
        run.rounds,
        description='noise',
    )
    run.report.compare(
        f'noise of {number} objects x 128',
        seconds,
        'all at once',
        'object by object',
    )


def _compare_steps(run: Run) -> None:
    calls = step_calls(training_scene(run), run)
    seconds = time_in_turn(calls, run.rounds, description='training step')
    memory = {
        name: peak_memory(call, run.device) for name, call in calls.items()
    }
    for name in ('whole batch', 'chunked', 'reduced channels'):
        for other in ('published', 'matrix products alone'):
            run.report.compare(f'training step, {name}', seconds, name, other)
        run.report.add(
            f'training step, {name}, peak memory',
            mib=memory[name],
            published_mib=memory['published'],
            ratio=memory[name] / memory['published'],
        )


def training_scene(run: Run) -> Scene:
    """The batch of a step, its maps as a frozen detector gives them."""
    sizes = run.sizes
    scene = build_scene(
        sizes.config,
        sizes.image,
        sizes.images_of_a_step,
        run.device,
        sizes.objects_of_a_step,
    )
    scene.features = [
        f.contiguous(memory_format=torch.channels_last) for f in scene.features
    ]
    scene.energy_model.train()
    return scene


def step_calls(scene: Scene, run: Run) -> dict[str, Callable[[], None]]:
    """What a step can be, by name."""
    energy_model, boxes = scene.energy_model, scene.boxes
    light = build_scene(
        run.sizes.config, (64, 64), 1, run.device, reduction=REDUCTION
    ).energy_model.train()
    corners, labels = zip(*boxes.split(boxes.corners, boxes.labels))
    update = _updater(energy_model)
    update_light = _updater(light)

    def loss_of(energy_model: EnergyModel, chunked: bool) -> Tensor:
        energy_model.chunked = chunked
        return energy_model.loss(
            scene.features, corners, labels, scene.image_sizes
        )['loss_energy']

    def published() -> None:
        logdensity = energy_model.corner_logdensity_fn(scene.pyramid(), boxes)
        update(nce_step(logdensity, corners, SIGMAS, BETA, NUM_SAMPLES))

    number = NUM_SAMPLES + 1
    pooled = torch.randn(
        number * len(boxes.labels),
        *energy_model.head.in_shape,
        device=run.device,
    ).contiguous(memory_format=torch.channels_last)

    def products() -> None:
        """The head alone, on pooled features that are there already."""
        rows = boxes.labels.repeat_interleave(number)
        update(energy_model.head(pooled, rows).sum())

    return {
        'whole batch': lambda: update(loss_of(energy_model, False)),
        'chunked': lambda: update(loss_of(energy_model, True)),
        'reduced channels': lambda: update_light(loss_of(light, True)),
        'published': published,
        'matrix products alone': products,
    }


def _updater(model: torch.nn.Module) -> Callable[[Tensor], None]:
    """Gradients of a loss, and a step that hardly moves the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update
