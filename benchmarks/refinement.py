"""The ascent against the published loop."""

from dataclasses import replace

import torch
from torch import Tensor

from mmdet_ebm.core import BoxAscent, FixedBoxDensity
from mmdet_ebm.ops import clip_boxes

from .pooling import leaves
from .published import PUBLISHED_ASCENT, refine_in_lists
from .scene import Run, build_scene
from .timing import time_in_turn


def refinement(run: Run) -> None:
    """100 detections in 1, 2 and 8 images against the published loop."""
    for num_images in (1, 2, 8):
        _compare(run, num_images)


def _compare(run: Run, num_images: int) -> None:
    sizes = run.sizes
    scene = build_scene(
        sizes.config, sizes.image, num_images, run.device, sizes.detections
    )
    energy_model, boxes = scene.energy_model, scene.boxes
    energy_model.requires_grad_(True)
    energy_model.density = FixedBoxDensity()  # the loop knows f alone
    # Built once for all steps here too, which favours the loop.
    differentiable = replace(
        scene, features=leaves(scene.features, True)
    ).pyramid()
    pyramid = scene.pyramid()
    start = [corners for (corners,) in boxes.split(boxes.corners)]

    def loop() -> list[Tensor]:
        energy_model.zero_grad(set_to_none=False)
        logdensity = energy_model.corner_logdensity_fn(differentiable, boxes)
        return refine_in_lists(
            lambda b: logdensity(torch.cat(b)[:, None])[:, 0],
            start,
            **PUBLISHED_ASCENT,
        )

    default = energy_model.ascent
    published = BoxAscent(**PUBLISHED_ASCENT, step_rule='decay')

    def ours(ascent: BoxAscent, dtype: torch.dtype | None = None) -> Tensor:
        energy_model.ascent, energy_model.inference_dtype = ascent, dtype
        return energy_model.refine(pyramid, boxes).corners

    # The published loop does not clip.
    expected = clip_boxes(
        torch.cat(loop()), boxes.image_index, scene.image_sizes
    )
    calls = {
        'published loop': loop,
        'published schedule': lambda: ours(published),
        'default': lambda: ours(default),
        'default, bfloat16': lambda: ours(default, torch.bfloat16),
    }
    seconds = time_in_turn(calls, run.rounds, description='refinement')
    for name in list(calls)[1:]:
        run.report.compare(
            f'{len(boxes.labels)} detections in {num_images} images, {name}',
            seconds,
            name,
            'published loop',
        )
    run.report.add(
        'boxes of the published schedule',
        max_difference_px=float((expected - ours(published)).abs().max()),
        mean_shift_px=float((expected - boxes.corners).abs().mean()),
    )
