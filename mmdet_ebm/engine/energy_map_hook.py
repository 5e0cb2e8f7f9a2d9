"""Watch the log-density around boxes take shape while it is trained."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
import torch
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ..apis.checks import find_refiner, require_energy_model
from ..models.energy_map import compute_energy_map
from ..models.surface_tap import SurfaceTap
from ..visualization import EnergyMapFigure


@HOOKS.register_module()
class EnergyMapHook(Hook):
    """Gives pictures of log-densities to mmengine's visualizer in validation.

    The first images of the val split, each with its best detections: box,
    annotation, deviations of the sides, maps over centre and size and the path
    of the ascent. They go wherever the visualizer's backends put them:
    ``vis_data/vis_image`` of the work dir, TensorBoard with a
    ``TensorboardVisBackend``. No image runs through the detector again.

    Args:
        num_images: Images of the val split.
        num_detections: Detections of each, by class score.
        score_thr: Least class score.
        interval: Validations from one set of pictures to the next.
        resolution: Points along the side of a map.

    Raises:
        ValueError: If a number makes no sense, or, when a run starts, if the
            model has no energy model.
    """

    def __init__(
        self,
        num_images: int = 2,
        num_detections: int = 1,
        score_thr: float = 0.3,
        interval: int = 1,
        resolution: int = 31,
    ) -> None:
        if min(num_images, num_detections, interval) < 1 or resolution < 2:
            raise ValueError(
                'num_images, num_detections and interval must be at least 1 '
                f'and resolution at least 2; got {num_images}, '
                f'{num_detections}, {interval} and {resolution}'
            )
        self.num_images = num_images
        self.num_detections = num_detections
        self.score_thr = score_thr
        self.interval = interval
        self.resolution = resolution
        self._validations = 0
        self._tap: SurfaceTap | None = None
        self._left = 0

    def before_run(self, runner: Runner) -> None:
        """The model must have an energy model."""
        require_energy_model(_bare_model(runner))

    def before_val_epoch(self, runner: Runner) -> None:
        """Start to watch."""
        if self._validations % self.interval == 0 and is_main_process():
            self._tap = SurfaceTap(find_refiner(_bare_model(runner))[1])
            self._tap.open()
            self._left = self.num_images
        self._validations += 1

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the batch's images, as long as there are some to be drawn."""
        if self._tap is None:
            return
        for image, sample in enumerate(outputs[: self._left]):
            self._draw(runner, outputs, image, sample)
        self._left -= min(self._left, len(outputs))
        if self._left == 0:
            self._stop()

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        """Stop watching."""
        self._stop()

    def _stop(self) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None

    def _draw(self, runner, outputs, image, sample) -> None:
        found = sample.pred_instances
        order = found.scores.argsort(descending=True)[: self.num_detections]
        picture = mmcv.imread(sample.img_path, channel_order='rgb')
        classes = runner.val_dataloader.dataset.metainfo['classes']
        for rank, row in enumerate(order.tolist()):
            score = float(found.scores[row])
            if score < self.score_thr:
                break
            energy = compute_energy_map(
                self._tap.refiner,
                self._tap.surface,
                outputs,
                image,
                row,
                self.resolution,
            )
            figure = EnergyMapFigure(
                picture,
                energy,
                f'class {classes[int(found.labels[row])]}, score {score:.2f};',
                _annotation(sample, row),
            )
            runner.visualizer.add_image(
                f'energy_map_{Path(sample.img_path).stem}_{rank}',
                figure.picture(),
                step=runner.iter,
            )


def _bare_model(runner: Runner) -> torch.nn.Module:
    model = runner.model
    return model.module if is_model_wrapper(model) else model


def _annotation(sample: DetDataSample, row: int) -> Tensor | None:
    """The box of the same class that overlaps a detection most, if any."""
    truth = sample.get('gt_instances')
    if truth is None or len(truth) == 0:
        return None
    found = sample.pred_instances
    boxes = get_box_tensor(truth.bboxes).to(found.bboxes)
    overlaps = bbox_overlaps(found.bboxes[row : row + 1], boxes)[0] * (
        truth.labels.to(found.labels) == found.labels[row]
    )
    best = int(overlaps.argmax())
    return boxes[best] if overlaps[best] > 0 else None
