"""The stages of the refinement as a share of the detector's inference."""

from collections.abc import Callable

import torch

from mmdet_ebm.core import BoxAscent, FixedBoxDensity
from mmdet_ebm.models import Refinement
from mmdet_ebm.models.detectors import refine_detections

from .published import PUBLISHED_ASCENT
from .scene import REDUCTION, Run, Scene, build_scene, image_batch
from .timing import time_in_turn

# Numbers like those that are fitted, with all that they can ask for.
FITTED = dict(
    temperature=2.0,
    side_std=0.03,
    score_slope=-0.2,
    size_slope=-0.3,
    vote_share=1.0,
    quality_power=0.5,
    object_score=0.8,
    object_count=0.2,
    object_mass=0.8,
    object_bias=-1.0,
)


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
    fitted, alone = FixedBoxDensity(**FITTED), FixedBoxDensity()

    @torch.no_grad()
    def refined(
        dtype: torch.dtype | None = None, uncertainty: bool = False
    ) -> None:
        """The default, under a fitted density. Its NMS and vote of the
        candidates count, though the detector's own time has an NMS too."""
        energy_model = scene.energy_model
        energy_model.ascent, energy_model.inference_dtype = default, dtype
        energy_model.density = fitted
        refine_detections(
            energy_model,
            Refinement(uncertainty=uncertainty),
            scene.pyramid(),
            scene.candidates,
            scene.model.box_source.test_cfg,
        )

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
        energy_model.density = alone
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
        'refined, the default': refined,
        'refined, bfloat16': lambda: refined(bfloat16),
        'refined and described': lambda: refined(uncertainty=True),
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
