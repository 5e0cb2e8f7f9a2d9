"""Trainings that chain tools, and are not run twice."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config

from ..files import write_text
from .progress_hook import short_path


def run_tool(tool: str | Path, *arguments: object) -> None:
    """Run a tool as the command line does; its output is the user's to see.

    Args:
        tool: Path of the script.
        *arguments: Of its command line.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    shown = [
        short_path(each) if isinstance(each, Path) else str(each)
        for each in (tool, *arguments)
    ]
    print('$', shlex.join(['python', *shown]), flush=True)
    command = [sys.executable, str(tool), *map(str, arguments)]
    subprocess.run(command, check=True)


def train_once(
    tool: str | Path,
    config: str | Path,
    work_dir: Path,
    seed: int,
    load_from: Path | None = None,
    data: str = '',
    max_epochs: int | None = None,
    verbose: bool = False,
) -> Path:
    """Train to the end, unless exactly this training has been done.

    What counts as this training: the resolved config, the seed, the checkpoint
    it starts from, the epochs and ``data``, a description of generated data.
    An interrupted one is resumed; another one in the same folder is removed.

    Args:
        tool: Path of tools/train.py.
        config: Config file of the small experiments, whose second scheduler
            is a cosine over all epochs.
        work_dir: Folder of this training.
        seed: Seed of initialisation, order and noise.
        load_from: Checkpoint to start from.
        data: Description of generated data.
        max_epochs: A schedule of this length instead of the config's.
        verbose: Show all that mmengine logs.

    Returns:
        The last checkpoint.
    """
    text = Config.fromfile(config).pretty_text
    identity = dict(
        config=Path(config).name,
        seed=seed,
        data=data,
        max_epochs=max_epochs,
        load_from=str(load_from),
        digest=hashlib.sha256(text.encode()).hexdigest(),
        load_from_time=load_from.stat().st_mtime if load_from else None,
    )
    started, done = work_dir / 'started.json', work_dir / 'done'
    # As text: a file that a kill has cut is no JSON, but it is another text.
    wanted = json.dumps(identity)
    if not started.exists() or started.read_text(errors='replace') != wanted:
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir(parents=True)
        write_text(started, wanted)
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
            tool,
            config,
            '--work-dir',
            work_dir,
            '--resume',
            *(['--verbose'] if verbose else []),
            '--cfg-options',
            *options,
        )
        write_text(done, (work_dir / 'last_checkpoint').read_text())
    return Path(done.read_text())
