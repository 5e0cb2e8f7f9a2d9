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
from mmengine.runner import Runner
from torch import Tensor

from ..apis.checks import require_energy_model, unwrapped
from ..models import EnergyModel
from ..models.detectors import Detected
from ..models.energy_map import compute_energy_map
from ..visualization import EnergyMapFigure


@HOOKS.register_module()
class EnergyMapHook(Hook):
    """Gives pictures of log-densities to mmengine's visualizer in validation.

    The first images of the val split, each with its best detections: box,
    annotation, deviations of the sides, maps over centre and size and the path
    of the ascent. They go wherever the visualizer's backends put them:
    ``vis_data/vis_image`` of the work dir, TensorBoard with a
    ``TensorboardVisBackend``. These images run through the detector twice.

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
        self._left = 0

    def before_run(self, runner: Runner) -> None:
        """The model must have an energy model."""
        require_energy_model(runner.model)

    def before_val_epoch(self, runner: Runner) -> None:
        """Decide whether this validation gets pictures."""
        wanted = self._validations % self.interval == 0 and is_main_process()
        self._left = self.num_images if wanted else 0
        self._validations += 1

    @torch.no_grad()
    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the batch's images, as long as there are some to be drawn."""
        if self._left == 0:
            return
        model = unwrapped(runner.model)
        data = model.data_preprocessor(data_batch, False)
        found = model.detect(data['inputs'], data['data_samples'])
        for image, sample in enumerate(outputs[: self._left]):
            self._draw(runner, model.energy_model, found, image, sample)
        self._left -= min(self._left, len(outputs))

    def _draw(
        self,
        runner: Runner,
        energy_model: EnergyModel,
        found: Detected,
        image: int,
        sample: DetDataSample,
    ) -> None:
        detections = sample.pred_instances
        order = detections.scores.argsort(descending=True)
        picture = mmcv.imread(sample.img_path, channel_order='rgb')
        classes = runner.val_dataloader.dataset.metainfo['classes']
        for rank, row in enumerate(order[: self.num_detections].tolist()):
            score = float(detections.scores[row])
            if score < self.score_thr:
                break
            energy = compute_energy_map(
                energy_model,
                found,
                image,
                row,
                sample.metainfo.get('scale_factor', (1.0, 1.0)),
                self.resolution,
            )
            figure = EnergyMapFigure(
                picture,
                energy,
                f'class {classes[int(detections.labels[row])]}, '
                f'score {score:.2f};',
                _annotation(sample, row),
            )
            runner.visualizer.add_image(
                f'energy_map_{Path(sample.img_path).stem}_{rank}',
                figure.picture(),
                step=runner.iter,
            )


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
