"""What the scripts that chain other tools share."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import nn

ROOT = Path(__file__).resolve().parent.parent


def run_tool(name: str, *arguments: object) -> None:
    """Run a tool of this folder; its output is the user's to see."""
    command = [sys.executable, f'tools/{name}.py', *map(str, arguments)]
    print('$', 'python', *command[1:], flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def train_once(
    config: str,
    work_dir: Path,
    seed: int,
    load_from: Path | None = None,
    data: str = '',
    max_epochs: int | None = None,
) -> Path:
    """Train to the end, unless exactly this training has been done.

    What counts as this training: the resolved config, the seed, the checkpoint
    it starts from, the epochs and ``data``, a description of generated data.
    An interrupted one is resumed; another one in the same folder is removed.

    Args:
        config: Config file of the small experiments, whose second scheduler
            is a cosine over all epochs.
        work_dir: Folder of this training.
        seed: Seed of initialisation, order and noise.
        load_from: Checkpoint to start from.
        data: Description of generated data.
        max_epochs: A schedule of this length instead of the config's.

    Returns:
        The last checkpoint.
    """
    text = Config.fromfile(ROOT / config).pretty_text
    identity = dict(
        config=config,
        seed=seed,
        data=data,
        max_epochs=max_epochs,
        load_from=str(load_from),
        digest=hashlib.sha256(text.encode()).hexdigest(),
        load_from_time=load_from.stat().st_mtime if load_from else None,
    )
    started, done = work_dir / 'started.json', work_dir / 'done'
    if not started.exists() or json.loads(started.read_text()) != identity:
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir(parents=True)
        started.write_text(json.dumps(identity))
    if not done.exists():
        options = [f'randomness.seed={seed}', f'load_from={load_from}']
        if max_epochs is not None:
            options += [
                f'{key}={max_epochs}'
                for key in (
                    'train_cfg.max_epochs',
                    'train_cfg.val_interval',
                    'param_scheduler.1.T_max',
                )
            ]
        run_tool(
            'train',
            config,
            '--work-dir',
            work_dir,
            '--resume',
            '--cfg-options',
            *options,
        )
        shutil.copy(work_dir / 'last_checkpoint', done)
    return Path(done.read_text())


def coco_results(
    image_id: int, instances: InstanceData, cat_ids: Sequence[int]
) -> list[dict]:
    """Detections of one image in COCO's result format."""
    found = instances.cpu()
    return [
        dict(
            image_id=image_id,
            score=score,
            category_id=cat_ids[label],
            bbox=[x1, y1, x2 - x1, y2 - y1],
        )
        for (x1, y1, x2, y2), score, label in zip(
            found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist()
        )
    ]


def write_json(path: Path, value: object) -> None:
    """Write to the side first: an interruption leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f'.{path.name}.part')
    side.write_text(json.dumps(value, indent=1))
    side.replace(path)


@contextmanager
def changed(module: nn.Module, settings: dict[str, Any]) -> Iterator[None]:
    """Other values of a module's attributes for a while."""
    before = {name: getattr(module, name) for name in settings}
    vars(module).update(settings)
    try:
        yield
    finally:
        vars(module).update(before)
