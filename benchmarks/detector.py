"""The stages of the refinement as a share of the detector's inference."""

from collections.abc import Callable

import torch

from mmdet_ebm.core import BoxAscent
from mmdet_ebm.models import Refinement
from mmdet_ebm.models.detectors import refine_detections

from .published import PUBLISHED_ASCENT
from .scene import REDUCTION, Run, Scene, build_scene, image_batch
from .timing import time_in_turn


def detector(run: Run) -> None:
    """Energy NMS and ascent as a share of the detector's own inference."""
    sizes = run.sizes
    cases = {'R50-FPN 800x1333': (sizes.config, sizes.image, 1.0)}
    for name, case in {**cases, **sizes.small_detectors}.items():
        _compare(run, name, *case)


def _compare(
    run: Run,
    name: str,
    config: str,
    image_size: tuple[int, int],
    box_scale: float,
) -> None:
    number = run.sizes.detections
    scene, light = (
        build_scene(
            config,
            image_size,
            1,
            run.device,
            number,
            4 * number,
            box_scale,
            reduction,
        )
        for reduction in (1, REDUCTION)
    )
    scene.model.refinement = Refinement(energy_nms=False, ascent=False)
    batch = image_batch(image_size, run.device)
    default = scene.energy_model.ascent
    published = BoxAscent(**PUBLISHED_ASCENT, step_rule='decay')

    @torch.no_grad()
    def stages(
        energy_nms: bool,
        ascent: bool,
        scene: Scene = scene,
        schedule: BoxAscent = default,
        dtype: torch.dtype | None = None,
    ) -> None:
        energy_model = scene.energy_model
        energy_model.ascent, energy_model.inference_dtype = schedule, dtype
        refine_detections(
            energy_model,
            Refinement(energy_nms, ascent),
            scene.pyramid(),
            scene.candidates if energy_nms else scene.detections(),
            scene.model.box_source.test_cfg,
        )

    bfloat16 = torch.bfloat16
    calls = {
        'detector': torch.no_grad()(lambda: scene.model.predict(**batch)),
        'energy NMS': lambda: stages(True, False),
        'ascent': lambda: stages(False, True),
        'both': lambda: stages(True, True),
        'both, bfloat16': lambda: stages(True, True, dtype=bfloat16),
        'both, reduced channels': lambda: stages(True, True, light),
        'both, reduced channels, bfloat16': lambda: stages(
            True, True, light, dtype=bfloat16
        ),
        'both, published schedule': lambda: stages(
            True, True, schedule=published
        ),
        'matrix products of both': _products(scene, default.num_steps),
    }
    seconds = time_in_turn(calls, run.rounds, description=name)
    for call in list(calls)[1:]:
        run.report.compare(f'{name}, {call}', seconds, call, 'detector')


def _products(scene: Scene, num_steps: int) -> Callable[[], None]:
    """What the ascent and the NMS need of the head alone."""
    head, labels = scene.energy_model.head, scene.boxes.labels
    pooled = torch.randn(len(labels), *head.in_shape, device=labels.device)
    number = scene.model.refinement.ascent_per_img
    moved = pooled[:number].clone().requires_grad_()

    def products() -> None:
        with torch.no_grad():
            for _ in range(4):  # 400 candidates
                head(pooled, labels)
            head(moved, labels[:number])  # the last of the steps
        for _ in range(num_steps):
            torch.autograd.grad(head(moved, labels[:number]).sum(), moved)

    return products
