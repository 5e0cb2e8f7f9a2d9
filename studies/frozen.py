"""What a frozen detector makes of the data, computed once.

Energy models then train on stored features and are judged on stored
detections, in a minute on a CPU. Only the comparison of many of them needs
this; one is trained by tools/train.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint, set_random_seed
from pycocotools.coco import COCO
from tqdm import tqdm

from mmdet_ebm.evaluation import MatchedDetections
from mmdet_ebm.evaluation.coco_matching import coco_results
from mmdet_ebm.models import EnergyModel, Refinement
from mmdet_ebm.models.detectors import refine_detections
from mmdet_ebm.models.detectors.refinement import to_original_frame

from .files import small_config_file, train_once


class FrozenDetector:
    """What a trained detector makes of the data, computed once.

    Args:
        config: An energy config of the data set.
        checkpoint: Of the plain detector.
        device: Where to compute and keep it.

    Attributes:
        checkpoint: The same.
    """

    def __init__(self, config: Path, checkpoint: Path, device: str) -> None:
        self.cfg = Config.fromfile(config)
        init_default_scope(self.cfg.default_scope)
        self.device = device
        self.checkpoint = checkpoint
        self.identity = [str(checkpoint), Path(checkpoint).stat().st_mtime]
        self.model = MODELS.build(self.cfg.model).to(device).eval()
        load_checkpoint(
            self.model, str(checkpoint), map_location=device, logger='silent'
        )
        self._predictions: dict[str, tuple] = {}

    @torch.no_grad()
    def training_views(self, num_views: int, seed: int) -> list[dict]:
        """Features and boxes of every training image, augmented as configured.

        Args:
            num_views: Augmented views of an image; one where nothing is
                random.
            seed: Seed of the augmentation.
        """
        loader = Runner.build_dataloader(
            dict(
                self.cfg.train_dataloader,
                batch_size=1,
                batch_sampler=None,
                sampler=dict(type='DefaultSampler', shuffle=False),
            )
        )
        set_random_seed(seed)  # mmcv's transforms draw from numpy
        views = []
        for view in range(num_views):
            for batch in tqdm(
                loader, desc=f'features, view {view + 1}', leave=False
            ):
                data = self.model.data_preprocessor(batch, True)
                (sample,) = data['data_samples']
                maps = self.model.recorder.run(data['inputs'], [sample])
                truth = sample.gt_instances
                views.append(
                    dict(
                        img_id=sample.img_id,
                        features=[m[0].clone() for m in maps],
                        boxes=get_box_tensor(truth.bboxes).clone(),
                        labels=truth.labels.clone(),
                        image_size=tuple(sample.img_shape[:2]),
                    )
                )
        return views

    @torch.no_grad()
    def predictions(self, split: str) -> tuple[list[tuple], list[int], COCO]:
        """What a split gives.

        Returns:
            For each batch its maps, plain detections in network-input pixels
            and meta information; then the ids of the categories, and the
            annotations.
        """
        if split not in self._predictions:
            loader = Runner.build_dataloader(self.cfg[f'{split}_dataloader'])
            stored = []
            for batch in tqdm(
                loader, desc=f'predictions, {split}', leave=False
            ):
                data = self.model.data_preprocessor(batch, False)
                samples = data['data_samples']
                with self.model.recorder.recording() as record:
                    plain = self.model.box_source.detections(
                        data['inputs'], samples
                    )
                stored.append(
                    (record.maps, plain, [s.metainfo for s in samples])
                )
            truth = COCO(self.cfg[f'{split}_evaluator'].ann_file)
            self._predictions[split] = stored, loader.dataset.cat_ids, truth
        return self._predictions[split]

    def with_boxes_of(
        self, views: Sequence[dict], ann_file: str
    ) -> list[dict]:
        """The same views with the boxes of another annotation file.

        For data whose training pipeline moves no box; views must be of all
        images, once each.
        """
        dataset = DATASETS.build(
            dict(self.cfg.train_dataloader.dataset, ann_file=ann_file)
        )
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        changed = []
        for view, info in zip(views, infos, strict=True):
            boxes = view['boxes'].new_tensor(
                [instance['bbox'] for instance in info['instances']]
            )
            if info['img_id'] != view['img_id'] or len(boxes) != len(
                view['boxes']
            ):
                raise ValueError(
                    f'{ann_file} does not list the images and objects of the '
                    f'stored views (image {view["img_id"]})'
                )
            changed.append(dict(view, boxes=boxes.view(-1, 4)))
        return changed

    @torch.no_grad()
    def results(
        self, split: str, energy_model: EnergyModel | None = None
    ) -> list[dict]:
        """Detections of a split in COCO's result format.

        Args:
            split: 'val' or 'test'.
            energy_model: Refines the plain detections by its ascent; without
                one they stay as they are.
        """
        stages = Refinement(energy_nms=False, ascent=energy_model is not None)
        ours = energy_model or self.model.energy_model
        stored, cat_ids, _ = self.predictions(split)
        results = []
        for maps, plain, metas in stored:
            pyramid = ours.pyramid(
                maps, [tuple(meta['img_shape'][:2]) for meta in metas]
            )
            found, _ = refine_detections(ours, stages, pyramid, plain)
            for instances, meta in zip(found, metas):
                results += coco_results(
                    meta['img_id'], to_original_frame(instances, meta), cat_ids
                )
        return results

    def evaluate(
        self, split: str, energy_model: EnergyModel | None = None
    ) -> dict[str, float]:
        """AP, AP50, AP75 and AP90 of :meth:`results`."""
        results = self.results(split, energy_model)
        truth = self.predictions(split)[2]
        return MatchedDetections(truth, results).average_precision()


def parse_study_args(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The arguments of a parser, and those that every study takes."""
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument(
        '--steps',
        type=int,
        default=300,
        help='training steps of an energy model (default: 300)',
    )
    parser.add_argument(
        '--samples',
        type=int,
        default=32,
        help='samples per object (default: 32)',
    )
    parser.add_argument(
        '--plain',
        type=Path,
        nargs='+',
        help='checkpoints of the plain detector, one for each '
        'seed (default: train them)',
    )
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    args = parser.parse_args(arguments)
    if args.plain and len(args.plain) != len(args.seeds):
        parser.error(
            '--plain needs one checkpoint for each of the '
            f'{len(args.seeds)} seeds'
        )
    return args


def frozen_detector(
    args: argparse.Namespace, data: str, index: int, work_dir: Path
) -> FrozenDetector:
    """The detector of the ``index``-th seed: given, or trained once."""
    seed = args.seeds[index]
    checkpoint = (
        args.plain[index]
        if args.plain
        else train_once(
            small_config_file(data), work_dir / f'seed{seed}' / 'plain', seed
        )
    )
    return FrozenDetector(
        small_config_file(data, 'nce-plus'), checkpoint, args.device
    )
