"""How good are the predicted uncertainties of boxes, and at what temperature?

Detections are matched to annotations (same class, IoU from 0.5), and the
predicted standard deviation of each side is compared with its actual error:

- the temperature is fitted on val, and only there, by the likelihood;
- on test, everything is reported with temperature 1, with the fitted one, and
  for a constant deviation for each side, relative to the box and fitted on
  val, which any prediction should beat.

Several checkpoints are runs of one experiment: mean and range are reported.
Writes OUT.json, OUT.md and OUT.png. Put the fitted temperature into the
config as model.roi_head.refiner.uncertainty.temperature (for other detectors,
model.refiner.uncertainty.temperature).
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import (
    exit_with_message,
    find_refiner,
    require_energy_model,
)
from mmdet_ebm.evaluation.calibration import (
    LEVELS,
    SideErrors,
    calibration,
    constant_std,
    fit_temperature,
    match_to_truth,
)
from mmdet_ebm.models.surface_tap import SurfaceTap, network_boxes
from mmdet_ebm.visualization.reliability import draw_reliability

matplotlib.use('Agg')
TEMPERATURES = np.geomspace(0.05, 20, 41)
KINDS = {
    'T = 1': 'temperature_1',
    'fitted T': 'fitted',
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
        action=DictAction,
        help='override config entries, e.g. '
        'model.roi_head.refiner.uncertainty.num_samples=256',
    )
    return parser.parse_args()


class Split:
    """Matched detections of a split, with the deviations wanted of each."""

    def __init__(
        self, model, cfg: Config, name: str, score_thr: float, min_iou: float
    ) -> None:
        self.model = model
        self.refiner = find_refiner(model)[1]
        self.loader = Runner.build_dataloader(cfg[f'{name}_dataloader'])
        self.name, self.score_thr, self.min_iou = name, score_thr, min_iou

    @torch.no_grad()
    def run(self, temperatures, redraw: bool) -> tuple[np.ndarray, ...]:
        """Errors (K, 4), deviations (T, K, 4), effective samples (T, K).

        Args:
            temperatures: T of them.
            redraw: Draw samples for each temperature, as in use, rather than
                share those of the first.
        """
        errors, stds, supports = [], [], []
        with SurfaceTap(self.refiner).running() as tap:
            for batch in tqdm(self.loader, desc=self.name, unit='batch'):
                samples = self.model.test_step(batch)
                boxes, error, factor = self._matched(samples)
                std, support = self._deviations(
                    tap.surface, boxes, temperatures, redraw
                )
                errors.append((error * factor).cpu())
                stds.append((std * factor).cpu())
                supports.append(support.cpu())
        return (
            torch.cat(errors).numpy(),
            torch.cat(stds, 1).numpy(),
            torch.cat(supports, 1).numpy(),
        )

    def _matched(self, samples):
        """Matched boxes, errors in network-input pixels, 1 / size."""
        boxes, _ = network_boxes(samples)
        rows, truths, start = [], [], 0
        for sample, (corners, labels) in zip(
            samples, boxes.split(boxes.corners, boxes.labels)
        ):
            scale = corners.new_tensor(
                sample.metainfo.get('scale_factor', (1.0, 1.0))
            ).repeat(2)
            truth = sample.gt_instances.to(corners.device)
            # Test pipelines load annotations in original pixels.
            wanted = get_box_tensor(truth.bboxes) * scale
            overlaps = bbox_overlaps(corners, wanted) * (
                labels[:, None] == truth.labels
            )
            scores = sample.pred_instances.scores
            overlaps[scores < self.score_thr] = 0
            row, column = match_to_truth(
                overlaps.cpu().numpy(), scores.cpu().numpy(), self.min_iou
            )
            rows.append(torch.from_numpy(row + start))
            truths.append(wanted[torch.from_numpy(column)])
            start += len(corners)
        rows = torch.cat(rows).to(boxes.corners.device)
        matched = type(boxes)(
            boxes.corners[rows],
            boxes.labels[rows],
            boxes.image_index[rows],
            (len(rows),),
        )
        size = matched.corners[:, 2:] - matched.corners[:, :2]
        return (
            matched,
            matched.corners - torch.cat(truths),
            1 / size.repeat(1, 2),
        )

    def _deviations(self, surface, boxes, temperatures, redraw):
        estimator = self.refiner.uncertainty_estimator
        usual = estimator.temperature
        stds, supports = [], []
        for part in boxes.chunks(estimator.rows_per_chunk):
            f = self.refiner.logdensity_fn(surface, part)
            found, observed = [], None
            for temperature in temperatures:
                if redraw:
                    estimator.temperature = temperature
                if redraw or observed is None:
                    observed = estimator.observe(f, part.corners)
                found.append(
                    estimator.summarise(observed, part.corners, temperature)
                )
            stds.append(torch.stack([one.std for one in found]))
            supports.append(torch.stack([one.support for one in found]))
        estimator.temperature = usual
        return torch.cat(stds, 1), torch.cat(supports, 1)


def evaluate(args: argparse.Namespace, cfg: Config, checkpoint: str) -> tuple:
    """Figures of a checkpoint, and the errors behind them by kind."""
    model = build_model(cfg, checkpoint, args.device)
    require_energy_model(model)
    find = lambda name: Split(model, cfg, name, args.score_thr, args.min_iou)
    error, stds, _ = find('val').run(TEMPERATURES, redraw=False)
    if len(error) == 0:
        raise ValueError(
            'no detection on val matches an annotation; is this '
            'checkpoint trained?'
        )
    temperature = fit_temperature(TEMPERATURES, stds, error)
    constant = constant_std(error)
    error, (usual, fitted), (support, _) = find('test').run(
        (1.0, temperature), redraw=True
    )
    errors = {
        'T = 1': SideErrors(error, usual),
        'fitted T': SideErrors(error, fitted),
        'constant': SideErrors(error, np.broadcast_to(constant, error.shape)),
    }
    figures = dict(
        checkpoint=Path(checkpoint).name,
        temperature=temperature,
        median_support=float(np.median(support)),
    )
    figures.update((KINDS[kind], calibration(e)) for kind, e in errors.items())
    return figures, errors


def table(runs: list[dict]) -> str:
    """Mean and range over the runs, in Markdown."""
    columns = [
        ('NLL', lambda f: f['nll'], '.2f'),
        *(
            (
                f'{100 * level:g} %',
                lambda f, level=level: 100 * f['coverage'][f'{100 * level:g}'],
                '.0f',
            )
            for level in LEVELS
        ),
        ('calibration error', lambda f: 100 * f['calibration_error'], '.1f'),
        ('rms z', lambda f: f['z_rms'], '.2f'),
        ('median std', lambda f: f['std_median'], '.3f'),
        ('rank corr.', lambda f: f['rank_correlation'], '.2f'),
    ]
    lines = [
        '| | ' + ' | '.join(name for name, *_ in columns) + ' |',
        '|---|' + '---|' * len(columns),
    ]
    for kind, key in KINDS.items():
        cells = []
        for _, value, form in columns:
            values = [value(run[key]) for run in runs]
            cells.append('' if None in values else spread(values, form))
        lines.append(f'| {kind} | {" | ".join(cells)} |')
    temperatures = [run['temperature'] for run in runs]
    matched = [run['fitted']['matched'] for run in runs]
    unknown = [run['fitted']['unknown'] for run in runs]
    lines += [
        '',
        f'Fitted temperature {spread(temperatures, ".2f")}; matched '
        f'detections on test {spread(matched, ".0f")}, without a '
        f'deviation {spread(unknown, ".0f")}.',
    ]
    return '\n'.join(lines)


def spread(values: list, form: str) -> str:
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
    args.out.with_suffix('.json').write_text(json.dumps(figures, indent=1))
    args.out.with_suffix('.md').write_text(table(runs) + '\n')
    draw_reliability(errors, args.out.with_suffix('.png'))
    print(table(runs))
    print(f'written: {args.out}.json, .md and .png')


if __name__ == '__main__':
    main()
