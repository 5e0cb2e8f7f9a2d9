"""How good are the predicted uncertainties of boxes?

Detections are matched to annotations (same class, IoU from 0.5), and the
predicted standard deviation of each side is compared with its actual error:

- as the model gives it, with the factor that was fitted with its density;
- multiplied with the factor that fits val best;
- for a constant deviation for each side, relative to the box and fitted on
  val, which any prediction should beat.

Several checkpoints are runs of one experiment: mean and range are reported.
Writes OUT.json, OUT.md and OUT.png.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

import numpy as np
import torch
from boltons.fileutils import atomic_save
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tabulate import tabulate
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.engine.config_options import ConfigOptions
from mmdet_ebm.evaluation.calibration import (
    LEVELS,
    SideErrors,
    calibration,
    constant_std,
)
from mmdet_ebm.evaluation.density_fit import match_batch
from mmdet_ebm.models import EnergyDetector
from mmdet_ebm.visualization.reliability import draw_reliability

KINDS = {
    'as it is': 'as_it_is',
    'scaled on val': 'scaled',
    'constant': 'constant',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file of the energy model')
    parser.add_argument('checkpoints', nargs='+', help='its checkpoints')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('calibration'),
        help='path of the results, without a suffix (default: calibration)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.0,
        help='leave out detections of a lower class score '
        '(default: 0, all that the detector gives)',
    )
    parser.add_argument(
        '--min-iou',
        type=float,
        default=0.5,
        help='least IoU of a match (default: 0.5)',
    )
    parser.add_argument(
        '--device', help='e.g. cuda:0 or cpu (default: a GPU if any)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='override config entries, e.g. '
        'model.energy_model.uncertainty.method=sampling',
    )
    return parser.parse_args()


@torch.no_grad()
def side_errors(
    model: EnergyDetector, cfg: Config, split: str, args: argparse.Namespace
) -> SideErrors:
    """Errors and deviations of a split's matched detections.

    Args:
        model: With ``refinement.uncertainty``.
        cfg: With the split's loader.
        split: 'val' or 'test'.
        args: With ``min_iou`` and ``score_thr``.
    """
    loader = Runner.build_dataloader(cfg[f'{split}_dataloader'])
    errors, stds = [], []
    for batch in tqdm(loader, desc=split, unit='batch'):
        data = model.data_preprocessor(batch, False)
        samples = data['data_samples']
        found = model.detect(data['inputs'], samples).instances
        pairs = match_batch(found, samples, args.min_iou, args.score_thr)
        for instances, (rows, truth) in zip(found, pairs):
            boxes = instances.bboxes[rows]
            size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            errors.append(((boxes - truth) / size).cpu())
            stds.append((instances.box_std[rows] / size).cpu())
    return SideErrors(torch.cat(errors).numpy(), torch.cat(stds).numpy())


def evaluate(
    args: argparse.Namespace, cfg: Config, checkpoint: str
) -> tuple[dict, dict[str, SideErrors]]:
    """Figures of a checkpoint, and the errors behind them by kind."""
    model = build_model(cfg, checkpoint, args.device)
    require_energy_model(model)
    model.refinement = replace(model.refinement, uncertainty=True)
    val, test = (side_errors(model, cfg, s, args) for s in ('val', 'test'))
    if not val.known.any():
        raise ValueError(
            'no detection on val matches an annotation; is this '
            'checkpoint trained?'
        )
    factor = calibration(val)['z_rms']
    constant = constant_std(val.error)
    errors = {
        'as it is': test,
        'scaled on val': replace(test, std=factor * test.std),
        'constant': replace(
            test, std=np.broadcast_to(constant, test.error.shape)
        ),
    }
    figures = dict(
        checkpoint=Path(checkpoint).name,
        density=model.energy_model.density.numbers(),
        factor=factor,
    )
    figures.update((KINDS[kind], calibration(e)) for kind, e in errors.items())
    return figures, errors


COLUMNS: Mapping[str, tuple[Callable[[dict], float | None], str]] = {
    'NLL': (lambda f: f['nll'], '.2f'),
    **{
        f'{100 * level:g} %': (
            lambda f, level=level: 100 * f['coverage'][f'{100 * level:g}'],
            '.0f',
        )
        for level in LEVELS
    },
    'calibration error': (lambda f: 100 * f['calibration_error'], '.1f'),
    'rms z': (lambda f: f['z_rms'], '.2f'),
    'median std': (lambda f: f['std_median'], '.3f'),
    'rank corr.': (lambda f: f['rank_correlation'], '.2f'),
}


def to_markdown(runs: Sequence[dict]) -> str:
    """Mean and range over the runs."""
    rows = []
    for kind, key in KINDS.items():
        row = [kind]
        for value, form in COLUMNS.values():
            values = [value(run[key]) for run in runs]
            row.append('' if None in values else spread(values, form))
        rows.append(row)
    table = tabulate(
        rows, ['', *COLUMNS], tablefmt='github', disable_numparse=True
    )
    factors = [run['factor'] for run in runs]
    matched = [run['as_it_is']['matched'] for run in runs]
    unknown = [run['as_it_is']['unknown'] for run in runs]
    return (
        f'{table}\n\n'
        f'Factor on val {spread(factors, ".2f")}; matched detections on test '
        f'{spread(matched, ".0f")}, without a deviation '
        f'{spread(unknown, ".0f")}.'
    )


def spread(values: Sequence[float], form: str) -> str:
    low, high = (format(v, form) for v in (min(values), max(values)))
    mean = format(float(np.mean(values)), form)
    return mean if low == high else f'{mean} ({low} to {high})'


def main() -> None:
    args = parse_args()
    with exit_with_message():
        cfg = Config.fromfile(args.config)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        runs, errors = zip(
            *(
                evaluate(args, cfg, checkpoint)
                for checkpoint in args.checkpoints
            )
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figures = dict(
        config=args.config,
        cfg_options=args.cfg_options or {},
        score_thr=args.score_thr,
        min_iou=args.min_iou,
        runs=runs,
    )
    text = to_markdown(runs)
    for suffix, content in (
        ('.json', json.dumps(figures, indent=1)),
        ('.md', text + '\n'),
    ):
        path = args.out.with_suffix(suffix)
        with atomic_save(str(path), text_mode=True) as file:
            file.write(content)
    draw_reliability(errors, args.out.with_suffix('.png'))
    print(text)
    print(f'written: {args.out}.json, .md and .png')


if __name__ == '__main__':
    main()
