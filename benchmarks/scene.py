"""What the benchmark measures on: feature maps, heads and injected boxes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ebm.models import EnergyModel
from mmdet_ebm.ops import Boxes, FeaturePyramid

from .timing import Report

ROOT = Path(__file__).resolve().parent.parent
COCO_CONFIG = 'configs/coco/faster-rcnn_r50_fpn_nce-plus_coco.py'
R50_IMAGE = (800, 1333)
# Config, image and scale of the boxes of detectors for small images.
SMALL_DETECTORS = {
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
    'YOLOX-nano at 416': (
        'mmdet::yolox/yolox_nano_8xb8-300e_coco.py',
        (416, 416),
        0.5,
    ),
    # The same, with a pyramid of the energy model's own.
    'YOLOX-nano at 416, EnergyNeck': (
        'configs/photos/yolox-nano_nce-plus_photos.py',
        (416, 416),
        0.5,
    ),
}
# Channels of the feature maps over those of the lighter head.
REDUCTION = 4
# Mean and deviation of the logarithms of the sides: an assumption of COCO's
# order of magnitude at the network's input scale, not measured on it.
_LOG_SIDE = (4.3, 0.9)
_LOG_ASPECT_STD = 0.35


@dataclass(frozen=True)
class Sizes:
    """What is measured on; numbers of boxes are of COCO's order of magnitude.

    Attributes:
        config: The detector.
        image: Height and width of an image.
        small_detectors: Further detectors, by name.
        pooled: Boxes that are pooled at once.
        detections: Of the refinement, over all images.
        noise: Objects for which noise is drawn.
        images_of_a_step: Images of a training step.
        objects_of_a_step: Objects in them.
    """

    config: str = COCO_CONFIG
    image: tuple[int, int] = R50_IMAGE
    small_detectors: Mapping[str, tuple] = field(
        default_factory=lambda: SMALL_DETECTORS
    )
    pooled: Sequence[int] = (1000, 4000)
    detections: int = 100
    noise: int = 10000
    images_of_a_step: int = 16
    objects_of_a_step: int = 112


@dataclass(frozen=True)
class Run:
    """What every section is given, and where it reports."""

    device: torch.device
    rounds: int
    sizes: Sizes
    report: Report


def coco_like_boxes(
    num_boxes: int,
    image_size: tuple[int, int],
    generator: torch.Generator,
    scale: float = 1.0,
) -> Tensor:
    """Corners (K, 4) of many sizes and shapes, as in COCO, in an image."""
    height, width = image_size
    mean, std = _LOG_SIDE
    side = scale * torch.exp(
        mean + std * torch.randn(num_boxes, generator=generator)
    )
    aspect = torch.exp(
        _LOG_ASPECT_STD * torch.randn(num_boxes, generator=generator)
    )
    size = torch.stack([side * aspect, side / aspect], 1).clamp(min=4)
    size = size.minimum(torch.tensor([width, height]) * 0.9)
    corner = torch.rand(num_boxes, 2, generator=generator) * (
        torch.tensor([width, height]) - size
    )
    return torch.cat([corner, corner + size], 1)


def candidates_like(
    objects: Tensor,
    num_candidates: int,
    num_classes: int,
    generator: torch.Generator,
) -> InstanceData:
    """Boxes above the score threshold as a box head gives them.

    Jittered copies of objects; early objects have more of them.
    """
    owner = torch.arange(len(objects))  # at least one each
    if 0 < len(objects) < num_candidates:
        share = 1 / (1 + owner).float().sqrt()
        more = share.multinomial(
            num_candidates - len(objects), True, generator=generator
        )
        owner = torch.cat([owner, more])
    num_candidates = len(owner)
    sizes = (objects[:, 2:] - objects[:, :2])[owner].repeat(1, 2)
    bboxes = objects[owner] + sizes * 0.08 * torch.randn(
        num_candidates, 4, generator=generator
    )
    return InstanceData(
        bboxes=bboxes,
        labels=owner % num_classes,
        scores=0.05 + 0.95 * torch.rand(num_candidates, generator=generator),
    )


@dataclass
class Scene:
    """A batch as the refinement sees it.

    Attributes:
        model: The detector with its energy model, in eval mode.
        features: Maps of each level.
        image_sizes: Height and width of each image.
        boxes: 100 detections, shared by the images.
        candidates: Of each image before the NMS, 400 in all.
    """

    model: nn.Module
    features: Sequence[Tensor]
    image_sizes: Sequence[tuple[int, int]]
    boxes: Boxes
    candidates: Sequence[InstanceData]

    @property
    def energy_model(self) -> EnergyModel:
        return self.model.energy_model

    def pyramid(self) -> FeaturePyramid:
        """The maps, ready to be pooled."""
        return self.energy_model.pyramid(self.features, self.image_sizes)

    def detections(self) -> list[InstanceData]:
        """The boxes as a detector's results."""
        return [
            InstanceData(
                bboxes=corners,
                labels=labels,
                scores=torch.ones_like(corners[:, 0]),
            )
            for corners, labels in self.boxes.split(
                self.boxes.corners, self.boxes.labels
            )
        ]


def build_scene(
    config: str,
    image_size: tuple[int, int],
    num_images: int,
    device: torch.device,
    num_boxes: int = 100,
    num_candidates: int = 400,
    box_scale: float = 1.0,
    reduction: int = 1,
) -> Scene:
    """Random weights and smooth random maps, the same at every call.

    The last layer is scaled so that the published steps move boxes by about
    a per cent of their size. The head's first layer sees one in ``reduction``
    channels.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    init_default_scope('mmdet')
    cfg = _config(config)
    cfg.model.detector.backbone.init_cfg = None  # random weights do
    if reduction > 1:
        neck = cfg.model.energy_model.get('neck') or cfg.model.detector.neck
        cfg.model.energy_model.head.reduced_channels = (
            neck.out_channels // reduction
        )
    logging.disable(logging.CRITICAL)
    try:
        model = MODELS.build(cfg.model)
        model.init_weights()
    finally:
        logging.disable(logging.NOTSET)
    energy_model = model.energy_model
    head = energy_model.head
    nn.init.normal_(head.fc_logdensity.weight, std=0.05)
    height, width = (-(-side // 32) * 32 for side in image_size)
    features = []
    strides = energy_model.featmap_strides
    channels = [head.in_shape[0]] * len(strides)
    if energy_model.neck is not None:
        channels = energy_model.neck.in_channels
    for stride, number in zip(strides, channels, strict=True):
        coarse = torch.randn(
            num_images,
            number,
            -(-height // (4 * stride)),
            -(-width // (4 * stride)),
            generator=generator,
        )
        features.append(
            F.interpolate(
                coarse,
                (height // stride, width // stride),
                mode='bilinear',
                align_corners=False,
            ).to(device)
        )
    classes = head.num_classes
    corners, labels, candidates = [], [], []
    for i in range(num_images):
        count = len(range(i, num_boxes, num_images))
        objects = coco_like_boxes(count, image_size, generator, box_scale)
        corners.append(objects.to(device))
        labels.append((torch.arange(count) % classes).to(device))
        candidates.append(
            candidates_like(
                objects,
                len(range(i, num_candidates, num_images)),
                classes,
                generator,
            ).to(device)
        )
    return Scene(
        model.to(device).eval(),
        features,
        [tuple(image_size)] * num_images,
        Boxes.from_images(corners, labels),
        candidates,
    )


def _config(name: str) -> Config:
    """One of ours, or a plain detector of mmdet with an energy model."""
    if not name.startswith('mmdet::'):
        return Config.fromfile(ROOT / name)
    energy_model = dict(
        head=dict(fc_out_channels=256),
        loss=dict(type='NCEPlusLoss', sigmas=(0.075, 0.15, 0.3)),
    )
    model = dict(
        type='EnergyDetector',
        detector=get_config(name).model,
        energy_model=energy_model,
    )
    return Config(dict(model=model))


def image_batch(image_size: tuple[int, int], device: torch.device) -> dict:
    """Input of a detector's ``predict``: one image, padded to 32."""
    height, width = (-(-side // 32) * 32 for side in image_size)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=tuple(image_size),
            ori_shape=tuple(image_size),
            pad_shape=(height, width),
            batch_input_shape=(height, width),
            scale_factor=(1.0, 1.0),
            img_id=0,
        )
    )
    return dict(
        batch_inputs=torch.randn(1, 3, height, width, device=device),
        batch_data_samples=[sample],
    )
