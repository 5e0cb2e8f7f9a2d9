"""Energy models that train on the stored views of a frozen detector."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.timing import peak_memory
from mmdet_ebm.files import write_json
from mmdet_ebm.models import EnergyModel

from .files import small_config_file
from .frozen import FrozenDetector


class ModelOnFeatures(BaseModel):
    """An energy model fed with feature maps, as mmengine's runner has it."""

    def __init__(self, energy_model: EnergyModel) -> None:
        super().__init__()
        self.energy_model = energy_model

    def forward(
        self, maps, gt_boxes, gt_labels, image_sizes, mode: str = 'loss'
    ) -> dict[str, Tensor]:
        if mode != 'loss':
            raise ValueError(f'can only train, asked for {mode!r}')
        return self.energy_model.loss(maps, gt_boxes, gt_labels, image_sizes)


def build_energy_model(cfg: Config, seed: int, device: str) -> EnergyModel:
    """The freshly initialised energy model of a detector's config."""
    torch.manual_seed(seed)
    energy_model = MODELS.build(cfg.model).energy_model
    energy_model.init_weights()
    return energy_model.to(device)


def train(
    energy_model: EnergyModel,
    cfg: Config,
    views: Sequence[dict],
    num_steps: int,
    seed: int,
    work_dir: Path,
) -> dict[str, float]:
    """Train on stored views.

    Args:
        energy_model: Trained in place.
        cfg: Optimiser, batch size and warm-up; the learning rate falls to
            nearly zero by a cosine over ``num_steps``.
        views: From ``FrozenDetector.training_views``.
        num_steps: Optimiser steps.
        seed: Seed of order and noise.
        work_dir: Receives mmengine's log.

    Returns:
        Seconds of a step (median), and MiB that a step allocates at its peak.
    """
    device = next(energy_model.parameters()).device
    warm_up, cosine = cfg.param_scheduler
    loader = DataLoader(
        views,
        batch_size=cfg.train_dataloader.batch_size,
        sampler=InfiniteSampler(views, seed=seed),
        collate_fn=_collate,
    )
    model = ModelOnFeatures(energy_model)
    runner = Runner(
        model=model,
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
    batch = model.data_preprocessor(next(iter(loader)))
    peak = peak_memory(
        lambda: model.parse_losses(model(**batch))[0].backward(), device
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
        maps=levels,
        gt_boxes=[v['boxes'] for v in views],
        gt_labels=[v['labels'] for v in views],
        image_sizes=[v['image_size'] for v in views],
    )


def small_config(
    data: str,
    kind: str,
    num_samples: int,
    changes: dict,
    published: bool = True,
) -> Config:
    """A shipped small config with a number of samples and other changes.

    Args:
        data: Folder of the config.
        kind: Kind of config, as in its file name.
        num_samples: Candidates of an object; where the positive is one of
            them, the loss draws one sample less.
        changes: Values by dotted key.
        published: Whether boxes are placed in the published way at test time,
            by f alone. Else it is as the config has it.
    """
    cfg = Config.fromfile(small_config_file(data, kind))
    energy_model = cfg.model.energy_model
    loss, ascent = energy_model.loss, energy_model.ascent
    if published:
        energy_model.density = None
        if ascent.get('type', 'BoxAscent') == 'BoxAscent':
            ascent.update(num_steps=10, step_rule='decay')
    if 'num_samples' in loss:
        loss.num_samples = num_samples - loss.num_samples % 2
    cfg.merge_from_dict(changes)
    return cfg


class TrainedModel:
    """A trained energy model, and what is known of it.

    Attributes:
        energy_model: In eval mode.
        seconds_per_step: Of its training.
        peak_mib: Of its training.
    """

    def __init__(
        self,
        detector: FrozenDetector,
        energy_model: EnergyModel,
        record: Path,
    ) -> None:
        self._detector, self.energy_model = detector, energy_model
        self._record = record
        self._step_length = energy_model.ascent.step_length
        known = json.loads(record.read_text())
        self.seconds_per_step = known['seconds_per_step']
        self.peak_mib = known['peak_mib']

    def evaluate(
        self,
        split: str,
        step_length: tuple[float, float] | float | None = None,
    ) -> dict[str, float]:
        """AP, AP50, AP75, AP90 of a split, refined with a step length.

        Args:
            split: 'val' or 'test'.
            step_length: As its ascent knows it; the config's without it.
        """
        step_length = step_length or self._step_length
        record = json.loads(self._record.read_text())
        key = f'{split} {step_length}'
        if key not in record['AP']:
            self.energy_model.ascent.step_length = step_length
            record['AP'][key] = self._detector.evaluate(
                split, self.energy_model
            )
            write_json(self._record, record)
        return record['AP'][key]


class EnergyModels:
    """Energy models of one detector and one seed, kept on disk."""

    def __init__(
        self, detector: FrozenDetector, seed: int, work_dir: Path
    ) -> None:
        self._detector, self._seed = detector, seed
        self._work_dir = work_dir

    def trained(
        self, name: str, cfg: Config, views: Sequence[dict], num_steps: int
    ) -> TrainedModel:
        """A trained energy model, from disk if it is there.

        Args:
            name: Part of its folder's name; views of other boxes need
                another name.
            cfg: Energy config.
            views: What to train on.
            num_steps: Optimiser steps.
        """
        device = self._detector.device
        identity = json.dumps(
            [
                cfg.model.energy_model.head,
                cfg.model.energy_model.loss,
                cfg.optim_wrapper,
                cfg.train_dataloader.batch_size,
                num_steps,
                self._seed,
                len(views),
                self._detector.identity,
            ],
            sort_keys=True,
        )
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        folder = self._work_dir / f'{name}_{digest}'
        energy_model = build_energy_model(cfg, self._seed, device)
        weights, record = folder / 'energy_model.pth', folder / 'record.json'
        if not record.exists():
            cost = train(
                energy_model, cfg, views, num_steps, self._seed, folder
            )
            torch.save(energy_model.state_dict(), weights)
            write_json(
                record, dict(identity=json.loads(identity), **cost, AP={})
            )
        energy_model.load_state_dict(torch.load(weights, map_location=device))
        return TrainedModel(self._detector, energy_model.eval(), record)
