"""How good are the predicted uncertainties of boxes?

Detections are matched to annotations (same class, IoU from 0.5), and the
predicted standard deviation of each side is compared with its actual error:

- as the model gives it, with the factor that was fitted with its density;
- multiplied with the factor that fits val best;
- for a constant deviation for each side, relative to the box and fitted on
  val, which any prediction should beat.

A second table is about the scores, of the plain detector and refined: do they
say how often detections are right (D-ECE), and how exact they are (LaECE)?

Several checkpoints are runs of one experiment: mean and range are reported.
Writes OUT.json, OUT.md and OUT.png.
"""

import argparse
import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from tabulate import tabulate
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.engine.config_options import add_model_arguments
from mmdet_ebm.evaluation.calibration import (
    LEVELS,
    SideErrors,
    calibration,
    constant_std,
    half_widths,
)
from mmdet_ebm.evaluation.coco_matching import coco_results
from mmdet_ebm.evaluation.density_fit import match_batch
from mmdet_ebm.evaluation.score_calibration import (
    detection_ece,
    localisation_aware_ece,
)
from mmdet_ebm.files import write_json, write_text
from mmdet_ebm.models import EnergyDetector
from mmdet_ebm.models.detectors.refinement import to_original_frame
from mmdet_ebm.ops import boxes_to_sides, side_sizes
from mmdet_ebm.visualization.reliability import draw_reliability

KINDS = {
    'as it is': 'as_it_is',
    'scaled on val': 'scaled',
    'quantiles of val': 'quantiles',
    'constant': 'constant',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(
        parser,
        several=True,
        example='model.energy_model.uncertainty.method=sampling',
    )
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
    return parser.parse_args()


@dataclass(frozen=True)
class Split:
    """What a model says of the images of a split.

    Attributes:
        errors: Of its matched detections.
        results: COCO results ``plain`` and ``refined``.
    """

    errors: SideErrors
    results: dict[str, list[dict]]


@torch.no_grad()
def read_split(
    model: EnergyDetector, cfg: Config, split: str, args: argparse.Namespace
) -> Split:
    """Run the model.

    Args:
        model: With ``refinement.uncertainty`` and ``keep_plain``.
        cfg: With the split's loader.
        split: 'val' or 'test'.
        args: With ``min_iou`` and ``score_thr``.
    """
    loader = Runner.build_dataloader(cfg[f'{split}_dataloader'])
    loader.dataset.full_init()
    errors, stds = [], []
    results: dict[str, list[dict]] = dict(plain=[], refined=[])
    for batch in tqdm(loader, desc=split, unit='batch'):
        data = model.data_preprocessor(batch, False)
        samples = data['data_samples']
        found = model.detect(data['inputs'], samples)
        pairs = match_batch(
            found.instances, samples, args.min_iou, args.score_thr
        )
        for instances, (rows, truth) in zip(found.instances, pairs):
            boxes = instances.bboxes[rows]
            errors.append(-boxes_to_sides(truth, boxes).cpu())
            stds.append((instances.box_std[rows] / side_sizes(boxes)).cpu())
        for key, of_images in zip(results, (found.plain, found.instances)):
            for sample, one in zip(samples, of_images):
                results[key] += coco_results(
                    sample.img_id,
                    to_original_frame(one, sample.metainfo),
                    loader.dataset.cat_ids,
                )
    return Split(
        SideErrors(torch.cat(errors).numpy(), torch.cat(stds).numpy()), results
    )


def evaluate(
    args: argparse.Namespace, cfg: Config, checkpoint: str
) -> tuple[dict, dict[str, SideErrors]]:
    """Figures of a checkpoint, and the errors behind them by kind."""
    model = build_model(cfg, checkpoint, args.device)
    require_energy_model(model)
    model.refinement = replace(
        model.refinement, uncertainty=True, keep_plain=True
    )
    val = read_split(model, cfg, 'val', args).errors
    if not val.known.any():
        raise ValueError(
            'no detection on val matches an annotation; is this '
            'checkpoint trained?'
        )
    test = read_split(model, cfg, 'test', args)
    factor = calibration(val)['z_rms']
    constant = constant_std(val.error)
    errors = {
        'as it is': test.errors,
        'scaled on val': replace(test.errors, std=factor * test.errors.std),
        'constant': replace(
            test.errors, std=np.broadcast_to(constant, test.errors.error.shape)
        ),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(cfg.test_evaluator.ann_file)
    figures = dict(
        checkpoint=Path(checkpoint).name,
        density=model.energy_model.density.numbers(),
        factor=factor,
        scores={
            key: {
                name: measure(truth, results)
                for name, measure in SCORE_ERRORS.items()
            }
            for key, results in test.results.items()
        },
    )
    figures.update((KINDS[kind], calibration(e)) for kind, e in errors.items())
    figures['quantiles'] = calibration(test.errors, val)
    figures['half_widths'] = half_widths(LEVELS, val).tolist()
    return figures, errors


SCORE_ERRORS = {
    'D-ECE': detection_ece,
    'LaECE': localisation_aware_ece,
}
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
    widths = np.mean([run['half_widths'] for run in runs], 0)
    scores = tabulate(
        [
            [key]
            + [
                spread([100 * run['scores'][key][e] for run in runs], '.1f')
                for e in SCORE_ERRORS
            ]
            for key in ('plain', 'refined')
        ],
        ['scores', *SCORE_ERRORS],
        tablefmt='github',
        disable_numparse=True,
    )
    return (
        f'{table}\n\n'
        f'Factor on val {spread(factors, ".2f")}; matched detections on test '
        f'{spread(matched, ".0f")}, without a deviation '
        f'{spread(unknown, ".0f")}.\n'
        f'By the quantiles of val, intervals of {_listed(LEVELS, 100)} % '
        f'reach {_listed(widths, 1)} deviations to either side.\n\n{scores}'
    )


def _listed(values: Sequence[float], factor: float) -> str:
    return ', '.join(f'{factor * value:.3g}' for value in values)


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
    figures = dict(
        config=args.config,
        cfg_options=args.cfg_options or {},
        score_thr=args.score_thr,
        min_iou=args.min_iou,
        runs=runs,
    )
    text = to_markdown(runs)
    write_json(args.out.with_suffix('.json'), figures)
    write_text(args.out.with_suffix('.md'), text + '\n')
    draw_reliability(errors, args.out.with_suffix('.png'))
    print(text)
    print(f'written: {args.out}.json, .md and .png')


if __name__ == '__main__':
    main()
