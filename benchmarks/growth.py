"""What the time of an ascent and of a training step grows with."""

from collections.abc import Callable
from typing import Any

from .scene import Run, build_scene
from .timing import time_in_turn


def growth(run: Run) -> None:
    """Time of an ascent and of a training step, by what they grow with."""
    _ascents(run)
    _losses(run)


def _ascents(run: Run) -> None:
    number, image = run.sizes.detections, run.sizes.image
    cases: dict[str, dict[str, Any]] = {
        **{
            f'{n} times as many boxes': dict(num_boxes=int(n * number))
            for n in (0.1, 1, 10)
        },
        **{
            f'image sides times {n}': dict(
                image_size=tuple(int(n * side) for side in image)
            )
            for n in (0.5, 1, 2)
        },
        **{
            f'boxes {n} times as large': dict(box_scale=n)
            for n in (0.25, 1, 4)
        },
    }
    usual = dict(
        image_size=image, num_images=1, device=run.device, num_boxes=number
    )
    calls: dict[str, Callable[[], None]] = {}
    for name, changes in cases.items():
        scene = build_scene(run.sizes.config, **{**usual, **changes})

        def ascend(scene=scene) -> None:
            scene.energy_model.refine(scene.pyramid(), scene.boxes)

        calls[name] = ascend
    seconds = time_in_turn(calls, run.rounds, description='growth')
    for name in calls:
        run.report.compare(
            f'ascent, {name}', seconds, name, '1 times as many boxes'
        )


def _losses(run: Run) -> None:
    scene = build_scene(run.sizes.config, run.sizes.image, 1, run.device, 8)
    energy_model, boxes = scene.energy_model.train(), scene.boxes
    method = energy_model.loss_energy.method

    def step(num_samples: int) -> None:
        method.num_samples = num_samples
        energy_model.loss(
            scene.features, [boxes.corners], [boxes.labels], scene.image_sizes
        )['loss_energy'].backward()

    calls = {f'{n} samples': lambda n=n: step(n) for n in (31, 127, 511)}
    seconds = time_in_turn(calls, run.rounds, description='samples')
    for name in calls:
        run.report.compare(
            f'loss and gradients of {len(boxes.labels)} objects, {name}',
            seconds,
            name,
            '127 samples',
        )
