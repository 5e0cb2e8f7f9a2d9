"""Pooling against mmcv's."""

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor

from mmdet_ebm.ops import FeaturePyramid

from .scene import Run, build_scene, coco_like_boxes
from .timing import peak_memory, time_in_turn


def pooling(run: Run) -> None:
    """Over the levels of an FPN at 800x1333, the change of layout included."""
    scene = build_scene(run.sizes.config, run.sizes.image, 1, run.device)
    for num_boxes in run.sizes.pooled:
        corners = coco_like_boxes(
            num_boxes, run.sizes.image, torch.Generator().manual_seed(1)
        ).to(run.device)
        _compare(run, scene.features, scene.pyramid(), corners)


def _compare(
    run: Run, features: Sequence[Tensor], like: FeaturePyramid, corners: Tensor
) -> None:
    """All directions of both, for boxes (R, 4) of one image."""
    image = torch.zeros_like(corners[:, 0], dtype=torch.int64)
    level = like.map_levels(corners)
    rois = torch.cat([image[:, None].float(), corners], 1)
    others = {
        'RoIAlign': dict(type='RoIAlign', output_size=7, sampling_ratio=2)
    }
    if run.device.type == 'cuda':
        others['PrRoIPool'] = dict(type='PrRoIPool', output_size=7)
    layers = {
        name: SingleRoIExtractor(layer, like.channels, like.strides)
        for name, layer in others.items()
    }
    grad = torch.randn(len(corners), like.channels, 7, 7, device=run.device)

    def ours(of_features: bool = False, of_boxes: bool = False) -> None:
        pyramid = FeaturePyramid(
            leaves(features, of_features), like.strides, like.image_sizes
        )
        (roi,) = leaves([corners], of_boxes)
        pooled = pyramid.pool(roi, image, level, (7, 7))
        if of_features or of_boxes:
            pooled.backward(grad)

    def theirs(layer: torch.nn.Module, backward: bool = False) -> None:
        pooled = layer(leaves(features, backward), rois)
        if backward:
            pooled.backward(grad)

    calls = {
        'forward': ours,
        'forward, box gradients': lambda: ours(of_boxes=True),
        'forward, all gradients': lambda: ours(True, True),
    }
    own = list(calls)
    for name, layer in layers.items():
        calls[name] = lambda layer=layer: theirs(layer)
        calls[f'{name} and backward'] = lambda layer=layer: theirs(layer, True)
    seconds = time_in_turn(calls, run.rounds, description='pooling')
    memory = {
        name: peak_memory(call, run.device) for name, call in calls.items()
    }
    for name in layers:
        for call in own:
            other = name if call == 'forward' else f'{name} and backward'
            run.report.compare(
                f'pooling {len(corners)} boxes, {call}',
                seconds,
                call,
                other,
                peak_mib=memory[call],
                other_peak_mib=memory[other],
            )


def leaves(tensors: Sequence[Tensor], requires_grad: bool) -> list[Tensor]:
    """The same numbers, where a graph may begin."""
    return [t.detach().requires_grad_(requires_grad) for t in tensors]
