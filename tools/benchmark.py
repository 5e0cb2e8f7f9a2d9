"""Speed of pooling, refinement and training, as ratios measured in one run.

  python tools/benchmark.py pooling      against mmcv's pooling
  python tools/benchmark.py refinement   against the published loop
  python tools/benchmark.py detector     as a share of the detector's inference
  python tools/benchmark.py training     against the published step and the
                                         head's matrix products alone
  python tools/benchmark.py growth       with boxes, samples and sizes
  python tools/benchmark.py all

Contenders run in turn, so that all meet the same machine; a figure is the
median (and quartiles) of the ratio, round by round. Weights and feature maps
are random; boxes are injected, of sizes and numbers like COCO's. On a CPU set
OMP_NUM_THREADS to the number of free cores, and THP_MEM_ALLOC_ENABLE=1 where
the system offers large pages: fresh memory costs less, for every contender.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from _benchmark_scene import (
    COCO_CONFIG,
    R50_IMAGE,
    Scene,
    build_scene,
    coco_like_boxes,
    image_batch,
)
from _experiment import changed
from _published import nce_step, refine_in_lists, sample_noise_of_object
from _timing import Report, environment, peak_memory, time_in_turn
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor

from mmdet_ebm.core import GaussianMixtureNoise
from mmdet_ebm.models import Refinement
from mmdet_ebm.models.refinement import refine_detections

SIGMAS, BETA, NUM_SAMPLES = (0.075, 0.15, 0.3), 0.1, 127
PUBLISHED = dict(num_steps=10, step_length=(80e-5, 32e-4), step_decay=0.5)
# Channels of the feature maps over those of the lighter head.
REDUCTION = 4
# Of COCO's order of magnitude. Objects: in 16 images of a training step.
NUM_BOXES = dict(
    pooling=(1000, 4000), detections=100, noise=10000, objects=112
)
SMALL = {
    'digits': (
        'configs/digits/faster-rcnn_r18-half_nce-plus_digits.py',
        (160, 160),
        0.4,
    ),
    'BCCD': (
        'configs/bccd/faster-rcnn_r18-half_nce-plus_bccd.py',
        (240, 320),
        0.5,
    ),
}


# ------------------------------------------------------------------- pooling


def pooling(args: argparse.Namespace, report: Report) -> None:
    """Over the levels of an FPN at 800x1333, the change of layout included."""
    device = torch.device(args.device)
    scene = build_scene(COCO_CONFIG, R50_IMAGE, 1, device)
    extractor = scene.refiner.roi_extractor
    for num_boxes in NUM_BOXES['pooling']:
        corners = coco_like_boxes(
            num_boxes, R50_IMAGE, torch.Generator().manual_seed(1)
        ).to(device)
        image = torch.zeros(num_boxes, dtype=torch.int64, device=device)
        level = extractor.map_roi_levels(corners)
        rois = torch.cat([image[:, None].float(), corners], 1)
        others = {
            'RoIAlign': dict(type='RoIAlign', output_size=7, sampling_ratio=2)
        }
        if device.type == 'cuda':
            others['PrRoIPool'] = dict(type='PrRoIPool', output_size=7)
        layers = {
            name: SingleRoIExtractor(
                layer, extractor.out_channels, extractor.featmap_strides
            )
            for name, layer in others.items()
        }
        grad = torch.randn(
            num_boxes, extractor.out_channels, 7, 7, device=device
        )

        def ours(features: bool = False, boxes: bool = False) -> None:
            maps = _leaves(scene.features, features)
            (roi,) = _leaves([corners], boxes)
            pooled = extractor.pool(
                extractor.surface(maps, scene.image_sizes), roi, image, level
            )
            if features or boxes:
                pooled.backward(grad)

        def theirs(layer: torch.nn.Module, backward: bool = False) -> None:
            maps = _leaves(scene.features, backward)
            pooled = layer(maps, rois)
            if backward:
                pooled.backward(grad)

        calls = {
            'forward': ours,
            'forward, box gradients': lambda: ours(boxes=True),
            'forward, all gradients': lambda: ours(True, True),
        }
        for name, layer in layers.items():
            calls[name] = lambda layer=layer: theirs(layer)
            calls[f'{name} and backward'] = lambda layer=layer: theirs(
                layer, True
            )
        seconds = time_in_turn(calls, args.rounds, description='pooling')
        memory = {
            name: peak_memory(call, device) for name, call in calls.items()
        }
        for name in layers:
            for call in (
                'forward',
                'forward, box gradients',
                'forward, all gradients',
            ):
                other = name if call == 'forward' else f'{name} and backward'
                report.compare(
                    f'pooling {num_boxes} boxes, {call}',
                    seconds,
                    call,
                    other,
                    peak_mib=memory[call],
                    other_peak_mib=memory[other],
                )


def _leaves(tensors: list[Tensor], requires_grad: bool) -> list[Tensor]:
    return [t.detach().requires_grad_(requires_grad) for t in tensors]


# ---------------------------------------------------------------- refinement


def refinement(args: argparse.Namespace, report: Report) -> None:
    """100 detections in 1, 2 and 8 images against the published loop."""
    device = torch.device(args.device)
    for num_images in (1, 2, 8):
        scene = build_scene(
            COCO_CONFIG, R50_IMAGE, num_images, device, NUM_BOXES['detections']
        )
        refiner, boxes = scene.refiner, scene.boxes
        refiner.requires_grad_(True)
        # Built once for all steps here too, which favours the loop.
        differentiable = refiner.surface(
            _leaves(scene.features, True), scene.image_sizes
        )
        surface = refiner.surface(scene.features, scene.image_sizes)
        start = [corners for (corners,) in boxes.split(boxes.corners)]

        def loop() -> list[Tensor]:
            refiner.zero_grad(set_to_none=False)
            logdensity = refiner.corner_logdensity_fn(differentiable, boxes)
            return refine_in_lists(
                lambda b: logdensity(torch.cat(b)[:, None])[:, 0],
                start,
                **PUBLISHED,
            )

        default = {
            name: getattr(refiner, name)
            for name in (*PUBLISHED, 'step_rule', 'inference_dtype')
        }
        published = dict(PUBLISHED, step_rule='decay')

        def ours(settings: dict[str, Any]) -> Tensor:
            with changed(refiner, settings):
                return refiner.refine(
                    surface, boxes, scene.image_sizes
                ).corners

        height, width = R50_IMAGE
        # The published loop does not clip.
        expected = (
            torch.cat(loop())
            .clamp(min=0)
            .minimum(boxes.corners.new_tensor([width, height, width, height]))
        )
        seconds = time_in_turn(
            {
                'published loop': loop,
                'published schedule': lambda: ours(published),
                'default': lambda: ours(default),
                'default, bfloat16': lambda: ours(
                    dict(default, inference_dtype=torch.bfloat16)
                ),
            },
            args.rounds,
            description='refinement',
        )
        for name in ('published schedule', 'default', 'default, bfloat16'):
            report.compare(
                f'{len(boxes.labels)} detections in {num_images} images, '
                f'{name}',
                seconds,
                name,
                'published loop',
            )
        report.add(
            'boxes of the published schedule',
            max_difference_px=float((expected - ours(published)).abs().max()),
            mean_shift_px=float((expected - boxes.corners).abs().mean()),
        )


# ------------------------------------------------------------------ detector


def detector(args: argparse.Namespace, report: Report) -> None:
    """Energy NMS and ascent as a share of the detector's own inference."""
    device = torch.device(args.device)
    cases = {'R50-FPN 800x1333': (COCO_CONFIG, R50_IMAGE, 1.0), **SMALL}
    for name, (config, image_size, scale) in cases.items():
        scene, light = (
            build_scene(
                config,
                image_size,
                1,
                device,
                NUM_BOXES['detections'],
                4 * NUM_BOXES['detections'],
                scale,
                reduction,
            )
            for reduction in (1, REDUCTION)
        )
        model, refiner = scene.model, scene.refiner
        batch = image_batch(image_size, device)
        model.roi_head.refinement = Refinement(energy_nms=False, ascent=False)
        plain = torch.no_grad()(lambda: model.predict(**batch))

        @torch.no_grad()
        def stages(
            energy_nms: bool,
            ascent: bool,
            scene: Scene = scene,
            **settings: Any,
        ) -> None:
            with changed(scene.refiner, settings):
                refine_detections(
                    scene.refiner,
                    Refinement(energy_nms, ascent),
                    scene.features,
                    scene.candidates if energy_nms else scene.detections(),
                    scene.metas(),
                    model.roi_head.test_cfg,
                )

        pooled = torch.randn(
            len(scene.boxes.labels),
            *refiner.head.in_shape,
            device=device,
            requires_grad=True,
        )

        def products() -> None:
            """What the ascent and the NMS need of the head alone."""
            with torch.no_grad():
                for _ in range(5):  # 400 candidates, the last of the steps
                    refiner.head(pooled, scene.boxes.labels)
            for _ in range(refiner.num_steps):
                torch.autograd.grad(
                    refiner.head(pooled, scene.boxes.labels).sum(), pooled
                )

        calls = {
            'detector': plain,
            'energy NMS': lambda: stages(True, False),
            'ascent': lambda: stages(False, True),
            'both': lambda: stages(True, True),
            'both, bfloat16': lambda: stages(
                True, True, inference_dtype=torch.bfloat16
            ),
            'both, reduced channels': lambda: stages(True, True, light),
            'both, reduced channels, bfloat16': lambda: stages(
                True, True, light, inference_dtype=torch.bfloat16
            ),
            'both, published schedule': lambda: stages(
                True, True, step_rule='decay', **PUBLISHED
            ),
            'matrix products of both': products,
        }
        seconds = time_in_turn(calls, args.rounds, description=name)
        for call in list(calls)[1:]:
            report.compare(f'{name}, {call}', seconds, call, 'detector')


# ------------------------------------------------------------------ training


def training(args: argparse.Namespace, report: Report) -> None:
    """Noise and the whole step of 16 images x 7 objects x 128 candidates."""
    device = torch.device(args.device)
    noise = GaussianMixtureNoise(SIGMAS).to(device)
    like = torch.empty(0, device=device)

    def sample_all(num_objects: int) -> None:
        offsets = noise.sample((num_objects, NUM_SAMPLES + 1, 4), like)
        noise.logprob(offsets)

    def sample_in_a_loop(num_objects: int) -> None:
        for _ in range(num_objects):
            sample_noise_of_object(SIGMAS, NUM_SAMPLES + 1)

    seconds = time_in_turn(
        {
            'all at once': lambda: sample_all(NUM_BOXES['noise']),
            'object by object': lambda: sample_in_a_loop(NUM_BOXES['noise']),
        },
        args.rounds,
        description='noise',
    )
    report.compare(
        f'noise of {NUM_BOXES["noise"]} objects x 128',
        seconds,
        'all at once',
        'object by object',
    )

    scene = build_scene(
        COCO_CONFIG, R50_IMAGE, 16, device, NUM_BOXES['objects']
    )
    # As a frozen detector gives them on a CPU.
    scene.features = [
        f.contiguous(memory_format=torch.channels_last) for f in scene.features
    ]
    refiner = scene.refiner.train()
    boxes, labels = zip(
        *scene.boxes.split(scene.boxes.corners, scene.boxes.labels)
    )
    optimizer = torch.optim.SGD(refiner.parameters(), lr=1e-9, momentum=0.9)

    light = build_scene(
        COCO_CONFIG, (64, 64), 1, device, reduction=REDUCTION
    ).refiner.train()
    light_optimizer = torch.optim.SGD(
        light.parameters(), lr=1e-9, momentum=0.9
    )

    def step(
        loss: Tensor, optimizer: torch.optim.Optimizer = optimizer
    ) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def loss_of(
        refiner: torch.nn.Module, memory_saving: bool | None
    ) -> Tensor:
        refiner.memory_saving = memory_saving
        return refiner.loss(scene.features, boxes, labels, scene.image_sizes)[
            'loss_energy'
        ]

    def published() -> None:
        surface = refiner.surface(scene.features, scene.image_sizes)
        logdensity = refiner.corner_logdensity_fn(surface, scene.boxes)
        step(nce_step(logdensity, boxes, SIGMAS, BETA, NUM_SAMPLES))

    pooled = torch.randn(
        128 * len(scene.boxes.labels), *refiner.head.in_shape, device=device
    ).contiguous(memory_format=torch.channels_last)

    def products() -> None:
        """The head alone, on pooled features that are there already."""
        label = scene.boxes.labels.repeat_interleave(128)
        step(refiner.head(pooled, label).sum())

    calls = {
        'whole batch': lambda: step(loss_of(refiner, False)),
        'memory saving': lambda: step(loss_of(refiner, True)),
        'reduced channels': lambda: step(
            loss_of(light, True), light_optimizer
        ),
        'published': published,
        'matrix products alone': products,
    }
    seconds = time_in_turn(calls, args.rounds, description='training step')
    memory = {name: peak_memory(call, device) for name, call in calls.items()}
    for name in ('whole batch', 'memory saving', 'reduced channels'):
        for other in ('published', 'matrix products alone'):
            report.compare(f'training step, {name}', seconds, name, other)
        report.add(
            f'training step, {name}, peak memory',
            mib=memory[name],
            published_mib=memory['published'],
            ratio=memory[name] / memory['published'],
        )


# -------------------------------------------------------------------- growth


def growth(args: argparse.Namespace, report: Report) -> None:
    """Time of an ascent and of a training step, by what they grow with."""
    device = torch.device(args.device)
    number = NUM_BOXES['detections']
    cases = {
        **{
            f'{n} times as many boxes': dict(num_boxes=int(n * number))
            for n in (0.1, 1, 10)
        },
        **{
            f'image sides times {n}': dict(
                image_size=tuple(int(n * side) for side in R50_IMAGE)
            )
            for n in (0.5, 1, 2)
        },
        **{
            f'boxes {n} times as large': dict(box_scale=n)
            for n in (0.25, 1, 4)
        },
    }
    calls = {}
    for name, changes in cases.items():
        scene = build_scene(
            COCO_CONFIG,
            **{
                **dict(
                    image_size=R50_IMAGE,
                    num_images=1,
                    device=device,
                    num_boxes=number,
                ),
                **changes,
            },
        )

        def ascend(scene=scene) -> None:
            surface = scene.refiner.surface(scene.features, scene.image_sizes)
            scene.refiner.refine(surface, scene.boxes, scene.image_sizes)

        calls[name] = ascend
    seconds = time_in_turn(calls, args.rounds, description='growth')
    for name in calls:
        report.compare(
            f'ascent, {name}', seconds, name, '1 times as many boxes'
        )

    scene = build_scene(COCO_CONFIG, R50_IMAGE, 1, device, 8)
    method = scene.refiner.train().loss_energy.method
    boxes = scene.boxes

    def step(num_samples: int) -> None:
        with changed(method, dict(num_samples=num_samples)):
            scene.refiner.loss(
                scene.features,
                [boxes.corners],
                [boxes.labels],
                scene.image_sizes,
            )['loss_energy'].backward()

    calls = {f'{n} samples': lambda n=n: step(n) for n in (31, 127, 511)}
    seconds = time_in_turn(calls, args.rounds, description='samples')
    for name in calls:
        report.compare(
            f'loss and gradients of {len(boxes.labels)} objects, {name}',
            seconds,
            name,
            '127 samples',
        )


SECTIONS = dict(
    pooling=pooling,
    refinement=refinement,
    detector=detector,
    training=training,
    growth=growth,
)


def main() -> None:
    args = parse_args()
    info = environment(torch.device(args.device))
    print(
        ', '.join(f'{key} {value}' for key, value in info.items()), flush=True
    )
    report = Report()
    for name, section in SECTIONS.items():
        if args.what in (name, 'all'):
            section(args, report)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(
                dict(info, rounds=args.rounds, figures=report.rows), indent=1
            )
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('what', choices=[*SECTIONS, 'all'])
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    return parser.parse_args()


if __name__ == '__main__':
    main()
