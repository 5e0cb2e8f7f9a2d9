"""What the command lines of tracking share."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..files import write_json
from ..models import TargetConditionalEnergy
from ..tracking import (
    LAYOUTS,
    SOTFigures,
    Track,
    bootstrap_interval,
    mean_figures,
    read_boxes,
)
from .checks import require_registered, require_weights
from .model import usable_device

FIGURES = ('auc', 'precision', 'norm_precision')


def build_tracking_model(
    config: str | Path | Config,
    checkpoint: str | Path,
    device: str | None = None,
    cfg_options: dict | None = None,
) -> TargetConditionalEnergy:
    """Build a ``TargetConditionalEnergy`` with its weights, in eval mode.

    Args:
        config: Config file or config.
        checkpoint: Weights.
        device: For example 'cuda:0'; None takes the first GPU, or the CPU if
            there is none.
        cfg_options: Changes to the config.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If config and checkpoint do not go together, or weights
            are not finite.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    require_registered(cfg)
    model = MODELS.build(cfg.model)
    if not isinstance(model, TargetConditionalEnergy):
        raise ValueError(
            'expected the config of a TargetConditionalEnergy, got that of a '
            f'{type(model).__name__}'
        )
    require_weights(model, checkpoint)
    model.to(usable_device(device))
    model.eval()
    return model


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Where sequences are."""
    parser.add_argument('--data', required=True, help='folder of sequences')
    parser.add_argument(
        '--layout',
        choices=list(LAYOUTS),
        default='otb',
        help='how they lie there (default: otb)',
    )


def read_density(path: str | Path) -> dict[str, float]:
    """The numbers that tools/fit_tracker.py wrote.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        numbers = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is no JSON file: {error}') from error
    if not isinstance(numbers, dict) or not all(
        isinstance(value, float) for value in numbers.values()
    ):
        raise ValueError(
            f'{path} should hold numbers by name, as tools/fit_tracker.py '
            'writes them'
        )
    return numbers


def read_tracker(
    folder: str | Path, tracks: Sequence[Track]
) -> dict[str, np.ndarray]:
    """A tracker's boxes (T, 4), from NAME.txt for each track, in OTB's form.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it has another number of boxes than the track.
    """
    boxes = {}
    for track in tracks:
        path = Path(folder) / f'{track.name}.txt'
        if not path.exists():
            raise FileNotFoundError(f'there are no boxes {path}')
        boxes[track.name] = read_boxes(path, 1)
        if len(boxes[track.name]) != len(track.frames):
            raise ValueError(
                f'{path} has {len(boxes[track.name])} boxes and the sequence '
                f'{len(track.frames)} frames'
            )
    return boxes


def write_comparison(
    path: str | Path,
    before: Mapping[str, SOTFigures],
    after: Mapping[str, SOTFigures],
    **facts: float | str,
) -> str:
    """Write the figures of boxes before and after, and sum them up.

    Args:
        path: JSON file to write: ``sequences``, with the figures of each,
            and means with the 95 % bootstrap intervals of the differences.
        before: Of each sequence.
        after: Of the same sequences.
        **facts: To be written along.

    Returns:
        Lines for the terminal, in per cent.
    """
    summary = {}
    lines = []
    old, new = (mean_figures(list(each.values())) for each in (before, after))
    for name in FIGURES:
        gains = np.array(
            [
                getattr(after[k], name) - getattr(before[k], name)
                for k in before
            ]
        )
        low, high = bootstrap_interval(gains)
        summary[name] = dict(
            before=getattr(old, name),
            after=getattr(new, name),
            gain=float(gains.mean()),
            low=low,
            high=high,
        )
        lines.append(
            f'{name:15} {100 * getattr(old, name):6.1f} -> '
            f'{100 * getattr(new, name):6.1f}  ({100 * gains.mean():+.2f}, '
            f'95 % interval {100 * low:+.2f} to {100 * high:+.2f})'
        )
    content = dict(
        facts,
        mean=summary,
        sequences={
            name: dict(before=asdict(before[name]), after=asdict(after[name]))
            for name in before
        },
    )
    write_json(path, content)
    return '\n'.join(lines)
