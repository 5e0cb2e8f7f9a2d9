"""Noise as wide as a detector's errors, measured before it is drawn."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.registry import HOOKS, TRANSFORMS
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import Dataset

from ..apis.checks import require_energy_model, unwrapped
from ..apis.data_checks import inner_datasets
from ..evaluation.calibration import match_to_truth
from ..models import EnergyDetector
from ..ops import boxes_to_relative

# Fewer errors than this say too little about their spread.
_LEAST_MATCHES = 20
# Of a Gaussian's absolute values, this share is below its deviation.
_SHARE = 0.6827
# Narrower noise would be below the precision of annotations.
_LEAST_SPREAD = 1e-3


@HOOKS.register_module()
class MeasureNoiseHook(Hook):
    """Measures the noise of a training method that asks for it.

    Before the first step of a training, the frozen detector runs over some
    images as it does at test time, without augmentation. Detections are
    matched to annotations of their class (IoU from 0.5), and the spread of
    their errors becomes that of the noise (``EnergyModel.set_spread``). A
    resumed training keeps its spread, and so does a loss whose widths are
    numbers. With several processes each looks at its share of the images.

    Args:
        num_images: Images at most, evenly taken from the split.
        split: 'val', or 'train'. A small detector errs less on the images
            that it learned. Without a val split it is 'train'.

    Raises:
        ValueError: If an argument makes no sense or, when a training starts,
            if there is no frozen detector or no test pipeline, or if hardly
            any detection is matched.
    """

    def __init__(self, num_images: int = 200, split: str = 'val') -> None:
        if num_images < 1 or split not in ('train', 'val'):
            raise ValueError(
                'expected num_images of at least 1 and the split '
                f"'train' or 'val', got {num_images} and {split!r}"
            )
        self.num_images = num_images
        self.split = split

    def before_train(self, runner: Runner) -> None:
        """Measure, unless the training goes on from where it was."""
        require_energy_model(runner.model)
        model = unwrapped(runner.model)
        loss = model.energy_model.loss_energy
        if loss.spread is None or runner.iter > 0:
            return
        if not model.freeze_detector:
            raise ValueError(
                'measured noise needs a detector that is trained already: '
                'expected model.freeze_detector=True, got False. Give '
                f'{type(loss).__name__} numbers for its noise'
            )
        split = 'train' if runner.val_loop is None else self.split
        dataset = getattr(runner, f'{split}_loop').dataloader.dataset
        images, errors = self._errors(model, self._samples(runner, dataset))
        if len(errors) < _LEAST_MATCHES:
            raise ValueError(
                f'expected at least {_LEAST_MATCHES} detections that overlap '
                'an annotation of their class, and the detector has '
                f'{len(errors)} on {images} images of {split}. Is it '
                'trained (load_from), and for these classes? Else give '
                f'{type(loss).__name__} numbers for its noise'
            )
        spread = error_spread(errors)
        model.energy_model.set_spread(spread.to(loss.spread))
        runner.logger.info(
            f'Noise: {len(errors)} detections on {images} images of '
            f'{split} have errors of spread {spread[0]:.4f} (centre) and '
            f'{spread[2]:.4f} (size), relative to their boxes. Widths for '
            f'x, y, log w, log h: {_listed(loss.sigmas)}'
        )

    def _samples(
        self, runner: Runner, dataset: Dataset
    ) -> Iterator[tuple[dict, Sequence]]:
        """What the detector takes, and the annotations, of some images."""
        pipeline = _test_pipeline(runner.cfg)
        places = [
            (inner, index)
            for inner in inner_datasets(dataset)
            for index in range(len(inner))
        ]
        step = max(1, len(places) // self.num_images)
        chosen = places[::step][: self.num_images]
        for inner, index in chosen[get_rank() :: get_world_size()]:
            info = inner.get_data_info(index)
            annotations = [
                each for each in info['instances'] if not each['ignore_flag']
            ]
            yield pipeline(info), annotations

    @torch.no_grad()
    def _errors(
        self, model: EnergyDetector, samples: Iterator[tuple[dict, Sequence]]
    ) -> tuple[int, Tensor]:
        """Number of images and errors (K, 4), of all processes."""
        training = model.training
        model.eval()
        found = []
        for sample, annotations in samples:
            data = model.data_preprocessor(pseudo_collate([sample]), False)
            (detected,) = model.detector.predict(
                data['inputs'], data['data_samples']
            )
            found.append(
                relative_errors(detected.pred_instances.cpu(), annotations)
            )
        model.train(training)
        everything = [
            error for each in all_gather_object(found) for error in each
        ]
        return len(everything), torch.cat([torch.zeros(0, 4), *everything])


def relative_errors(detections, annotations: Sequence[dict]) -> Tensor:
    """Annotations, relative to the detections that found them.

    Args:
        detections: ``bboxes`` (K, 4), ``scores`` and ``labels`` (K,) of an
            image, in its own pixels.
        annotations: Its ``bbox`` (x1, y1, x2, y2) and ``bbox_label``.

    Returns:
        (M, 4) relative coordinates of M matches.
    """
    boxes = get_box_tensor(detections.bboxes).float()
    truth = boxes.new_tensor([a['bbox'] for a in annotations]).reshape(-1, 4)
    labels = torch.tensor([a['bbox_label'] for a in annotations]).long()
    overlaps = bbox_overlaps(boxes, truth) * (
        detections.labels[:, None] == labels
    )
    rows, columns = match_to_truth(overlaps.numpy(), detections.scores.numpy())
    return boxes_to_relative(truth[columns], boxes[rows])


def error_spread(errors: Tensor) -> Tensor:
    """Spread of errors, one number for centres and one for sizes.

    The quantile of their magnitudes below which a Gaussian has one standard
    deviation: a few wrong matches do not move it.

    Args:
        errors: (K, 4) in relative space.

    Returns:
        (4,) for x, y, log w and log h.
    """
    magnitudes = errors.abs().numpy()
    spread = [
        max(_LEAST_SPREAD, float(np.quantile(magnitudes[:, group], _SHARE)))
        for group in (slice(0, 2), slice(2, 4))
    ]
    return torch.tensor(spread).repeat_interleave(2)


def _test_pipeline(cfg: Config) -> Compose:
    for split in ('val', 'test'):
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset', {})
        while 'pipeline' not in dataset and 'dataset' in dataset:
            dataset = dataset['dataset']
        if 'pipeline' in dataset:
            return Compose(
                [TRANSFORMS.build(step) for step in dataset['pipeline']]
            )
    raise ValueError(
        'the noise is measured on images as at test time: expected a '
        'pipeline in val_dataloader.dataset or test_dataloader.dataset, and '
        'there is none'
    )


def _listed(rows: Sequence[Sequence[float]]) -> str:
    return '; '.join(', '.join(f'{w:.4f}' for w in row) for row in rows)
