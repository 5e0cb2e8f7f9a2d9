"""Energy heads trained and judged on the stored outputs of a frozen detector.

The detector's features and raw predictions are computed once and kept in
memory; a head then trains in a minute on a CPU. Only the comparison of many
heads needs this; one head is trained by tools/train.py.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from _experiment import ROOT, coco_results, train_once, write_json
from _timing import peak_memory
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint, set_random_seed
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmdet_ebm.evaluation import MatchedDetections
from mmdet_ebm.models import Refinement


class EnergyModelOnFeatures(BaseModel):
    """An energy refiner as a model of its own, fed with feature maps."""

    def __init__(self, refiner: torch.nn.Module) -> None:
        super().__init__()
        self.refiner = refiner

    def forward(
        self, features, gt_boxes, gt_labels, image_sizes, mode: str = 'loss'
    ) -> dict[str, Tensor]:
        if mode != 'loss':
            raise ValueError(f'can only train, asked for {mode!r}')
        return self.refiner.loss(features, gt_boxes, gt_labels, image_sizes)


class FrozenDetector:
    """What a trained detector makes of the data, computed once.

    Args:
        config: An energy config of the data set.
        checkpoint: Of the plain detector.
        device: Where to compute and keep it.
    """

    def __init__(self, config: str, checkpoint: Path, device: str) -> None:
        self.cfg = Config.fromfile(ROOT / config)
        init_default_scope(self.cfg.default_scope)
        self.device = device
        self.identity = [str(checkpoint), Path(checkpoint).stat().st_mtime]
        self.model = MODELS.build(self.cfg.model).to(device).eval()
        load_checkpoint(
            self.model, str(checkpoint), map_location=device, logger='silent'
        )
        self._plain_roi_head = self.model.roi_head
        self._plain_roi_head.refinement = Refinement(False, False)
        self._predictions = {}

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
                maps = self.model.extract_feat(data['inputs'])
                views.append(
                    dict(
                        img_id=sample.img_id,
                        features=[m[0].clone() for m in maps],
                        boxes=get_box_tensor(
                            sample.gt_instances.bboxes
                        ).clone(),
                        labels=sample.gt_instances.labels.clone(),
                        image_size=tuple(sample.img_shape[:2]),
                    )
                )
        return views

    @torch.no_grad()
    def predictions(self, split: str) -> list[tuple]:
        """Features, plain detections and meta information, in batches."""
        if split not in self._predictions:
            loader = Runner.build_dataloader(self.cfg[f'{split}_dataloader'])
            stored = []
            for batch in tqdm(
                loader, desc=f'predictions, {split}', leave=False
            ):
                data = self.model.data_preprocessor(batch, False)
                samples = data['data_samples']
                x = self.model.extract_feat(data['inputs'])
                proposals = self.model.rpn_head.predict(
                    x, samples, rescale=False
                )
                metas = [s.metainfo for s in samples]
                plain = self._plain_roi_head.predict_bbox(
                    x,
                    metas,
                    proposals,
                    self._plain_roi_head.test_cfg,
                    rescale=False,
                )
                stored.append((x, plain, metas))
            dataset = loader.dataset
            truth = COCO(self.cfg[f'{split}_evaluator'].ann_file)
            self._predictions[split] = stored, dataset.cat_ids, truth
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

    def evaluate_plain(self, split: str) -> dict[str, float]:
        """AP, AP50, AP75 and AP90 of the plain detections."""
        return self.evaluate(self._plain_roi_head, split)

    @torch.no_grad()
    def evaluate(
        self, roi_head: torch.nn.Module, split: str
    ) -> dict[str, float]:
        """AP, AP50, AP75 and AP90 of a split under an ``EnergyRoIHead``.

        Its stages start from the plain detections: leave the energy NMS off.
        """
        stored, cat_ids, truth = self.predictions(split)
        results = []
        for x, plain, metas in stored:
            found = roi_head.refine_raw(
                # Copies: rescaling replaces their boxes.
                x,
                [InstanceData(**dict(p.items())) for p in plain],
                metas,
                roi_head.test_cfg,
                rescale=True,
            )
            for instances, meta in zip(found, metas):
                results += coco_results(meta['img_id'], instances, cat_ids)
        return MatchedDetections(truth, results).average_precision()


def parse_study_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of a parser, and those that every study takes."""
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument(
        '--steps',
        type=int,
        default=300,
        help='training steps of a head (default: 300)',
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
    args = parser.parse_args()
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
            f'configs/{data}/faster-rcnn_r18-half_{data}.py',
            work_dir / f'seed{seed}' / 'plain',
            seed,
        )
    )
    return FrozenDetector(
        f'configs/{data}/faster-rcnn_r18-half_nce-plus_{data}.py',
        checkpoint,
        args.device,
    )


def build_energy_model(cfg: Config, seed: int, device: str):
    """The model of a config with a freshly initialised energy head."""
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    model.roi_head.refiner.init_weights()
    return model.to(device)


def train_head(
    model: torch.nn.Module,
    cfg: Config,
    views: Sequence[dict],
    num_steps: int,
    seed: int,
    work_dir: Path,
) -> dict[str, float]:
    """Train a model's energy head on stored views.

    Args:
        model: Its refiner is trained in place.
        cfg: Optimiser, batch size and warm-up; the learning rate falls to
            nearly zero by a cosine over ``num_steps``.
        views: From ``FrozenDetector.training_views``.
        num_steps: Optimiser steps.
        seed: Seed of order and noise.
        work_dir: Receives mmengine's log.

    Returns:
        Seconds of a step (median), and MiB that a step allocates at its peak.
    """
    device = next(model.parameters()).device
    warm_up, cosine = cfg.param_scheduler
    loader = DataLoader(
        views,
        batch_size=cfg.train_dataloader.batch_size,
        sampler=InfiniteSampler(views, seed=seed),
        collate_fn=_collate,
    )
    online = EnergyModelOnFeatures(model.roi_head.refiner)
    runner = Runner(
        model=online,
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=num_steps),
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=[
            dict(warm_up, end=min(warm_up.end, max(1, num_steps // 4))),
            dict(
                type=cosine.type,
                T_max=num_steps,
                by_epoch=False,
                eta_min=cosine.eta_min,
            ),
        ],
        default_hooks=dict(checkpoint=None),
        randomness=dict(seed=seed),
        log_level='ERROR',
        default_scope=cfg.default_scope,
        experiment_name=f'{work_dir.name}_{time.time_ns()}',
    )
    runner.train()
    times, _ = runner.message_hub.get_scalar('train/time').data
    batch = next(iter(loader))
    peak = peak_memory(
        lambda: online.parse_losses(online(**online.data_preprocessor(batch)))[
            0
        ].backward(),
        device,
    )
    return dict(
        seconds_per_step=float(torch.tensor(times).median()), peak_mib=peak
    )


def _collate(views: Sequence[dict]) -> dict:
    """One batch, its maps padded to the largest."""
    levels = []
    for maps in zip(*(view['features'] for view in views)):
        height = max(m.shape[1] for m in maps)
        width = max(m.shape[2] for m in maps)
        levels.append(
            torch.stack(
                [
                    F.pad(m, (0, width - m.shape[2], 0, height - m.shape[1]))
                    for m in maps
                ]
            )
        )
    return dict(
        features=levels,
        gt_boxes=[v['boxes'] for v in views],
        gt_labels=[v['labels'] for v in views],
        image_sizes=[v['image_size'] for v in views],
    )


def small_config(
    data: str, kind: str, num_samples: int, changes: dict
) -> Config:
    """A shipped small config with a number of samples and other changes.

    Args:
        data: Folder of the config.
        kind: Kind of config, as in its file name.
        num_samples: Candidates of an object; where the positive is one of
            them, the loss draws one sample less.
        changes: Values by dotted key.
    """
    cfg = Config.fromfile(
        ROOT / f'configs/{data}/faster-rcnn_r18-half_{kind}_{data}.py'
    )
    refiner = cfg.model.roi_head.refiner
    loss = refiner.loss
    if refiner.type == 'EnergyRefiner':
        # The published ascent: methods are compared as they were.
        refiner.update(num_steps=10, step_rule='decay')
    if 'num_samples' in loss:
        loss.num_samples = num_samples - loss.num_samples % 2
    cfg.merge_from_dict(changes)
    return cfg


class Heads:
    """Heads trained on one detector with one seed, kept on disk."""

    def __init__(
        self, detector: FrozenDetector, seed: int, work_dir: Path
    ) -> None:
        self.detector, self.seed, self.work_dir = detector, seed, work_dir

    def train(
        self, name: str, cfg: Config, views: Sequence[dict], num_steps: int
    ) -> 'Head':
        """The trained head, from disk if it is there.

        Args:
            name: Part of its folder's name; views of other boxes need
                another name.
            cfg: Energy config.
            views: What to train on.
            num_steps: Optimiser steps.
        """
        refiner = cfg.model.roi_head.refiner
        identity = json.dumps(
            [
                refiner.head,
                refiner.loss,
                cfg.optim_wrapper,
                cfg.train_dataloader.batch_size,
                num_steps,
                self.seed,
                len(views),
                self.detector.identity,
            ],
            sort_keys=True,
        )
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        folder = self.work_dir / f'{name}_{digest}'
        model = build_energy_model(cfg, self.seed, self.detector.device)
        model.roi_head.refinement = Refinement(energy_nms=False, ascent=True)
        weights, record = folder / 'head.pth', folder / 'record.json'
        if not record.exists():
            cost = train_head(model, cfg, views, num_steps, self.seed, folder)
            torch.save(model.roi_head.refiner.state_dict(), weights)
            write_json(
                record, dict(identity=json.loads(identity), **cost, AP={})
            )
        model.roi_head.refiner.load_state_dict(
            torch.load(weights, map_location=self.detector.device)
        )
        return Head(self.detector, model.eval(), record)


class Head:
    """A trained head, and what is known of it."""

    def __init__(
        self, detector: FrozenDetector, model: torch.nn.Module, record: Path
    ) -> None:
        self.detector, self.model, self.record = detector, model, record
        self.step_length = model.roi_head.refiner.step_length
        known = json.loads(record.read_text())
        self.seconds_per_step = known['seconds_per_step']
        self.peak_mib = known['peak_mib']

    def evaluate(
        self, split: str, step_length: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """AP, AP50, AP75, AP90 of a split, refined with a step length.

        Args:
            split: 'val' or 'test'.
            step_length: For centre and size; the config's without it.
        """
        step_length = tuple(step_length or self.step_length)
        record = json.loads(self.record.read_text())
        key = f'{split} {step_length}'
        if key not in record['AP']:
            self.model.roi_head.refiner.step_length = step_length
            record['AP'][key] = self.detector.evaluate(
                self.model.roi_head, split
            )
            write_json(self.record, record)
        return record['AP'][key]
