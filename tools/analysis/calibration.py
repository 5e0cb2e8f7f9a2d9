"""How good are the predicted uncertainties of boxes, and at what temperature?

Detections are matched to annotations (same class, IoU from 0.5), and the
predicted standard deviation of each side is compared with its actual error:

- the temperature is fitted on val, and only there, by the likelihood;
- on test, everything is reported with temperature 1, with the fitted one, and
  for a constant deviation for each side, relative to the box and fitted on
  val, which any prediction should beat.

Several checkpoints are runs of one experiment: mean and range are reported.
Writes OUT.json, OUT.md and OUT.png. Put the fitted temperature into the
config as model.energy_model.uncertainty.temperature.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from boltons.fileutils import atomic_save
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.core import BoxPrior
from mmdet_ebm.engine.config_options import ConfigOptions
from mmdet_ebm.evaluation.calibration import (
    LEVELS,
    SideErrors,
    calibration,
    constant_std,
    fit_temperature,
)
from mmdet_ebm.evaluation.density_fit import match_batch
from mmdet_ebm.models import EnergyDetector
from mmdet_ebm.models.detectors import Detected
from mmdet_ebm.models.detectors.refinement import box_table, prior_of
from mmdet_ebm.ops import Boxes, FeaturePyramid
from mmdet_ebm.visualization.reliability import draw_reliability

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
        action=ConfigOptions,
        help='override config entries, e.g. '
        'model.energy_model.uncertainty.num_samples=256',
    )
    return parser.parse_args()


class Split:
    """Matched detections of a split, with the deviations wanted of each."""

    def __init__(
        self,
        model: EnergyDetector,
        cfg: Config,
        name: str,
        score_thr: float,
        min_iou: float,
    ) -> None:
        self.model = model
        self.loader = Runner.build_dataloader(cfg[f'{name}_dataloader'])
        self.name, self.score_thr, self.min_iou = name, score_thr, min_iou

    @torch.no_grad()
    def run(
        self, temperatures: Sequence[float], redraw: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Errors (K, 4), deviations (T, K, 4), effective samples (T, K).

        Errors and deviations are relative to the box's size.

        Args:
            temperatures: T of them.
            redraw: Draw samples for each temperature, as in use, rather than
                share those of the first.
        """
        errors, stds, supports = [], [], []
        for batch in tqdm(self.loader, desc=self.name, unit='batch'):
            data = self.model.data_preprocessor(batch, False)
            samples = data['data_samples']
            found = self.model.detect(data['inputs'], samples)
            boxes, prior, error = self._matched(found, samples)
            std, support = self._deviations(
                found.pyramid, boxes, prior, temperatures, redraw
            )
            size = boxes.corners[:, 2:] - boxes.corners[:, :2]
            factor = 1 / size.repeat(1, 2)
            errors.append((error * factor).cpu())
            stds.append((std * factor).cpu())
            supports.append(support.cpu())
        return (
            torch.cat(errors).numpy(),
            torch.cat(stds, 1).numpy(),
            torch.cat(supports, 1).numpy(),
        )

    def _matched(
        self, found: Detected, samples: SampleList
    ) -> tuple[Boxes, BoxPrior, Tensor]:
        """Matched boxes, their prior and errors, in network pixels."""
        pairs = match_batch(
            found.instances, samples, self.min_iou, self.score_thr
        )
        boxes = box_table(found.instances)
        starts = accumulate([0, *boxes.counts])
        index = torch.cat(
            [rows + start for (rows, _), start in zip(pairs, starts)]
        )
        matched = boxes.rows(index)
        prior = prior_of(self.model.energy_model.density, found.instances)
        truth = torch.cat([wanted for _, wanted in pairs])
        return matched, prior.rows(index), matched.corners - truth

    def _deviations(
        self,
        pyramid: FeaturePyramid,
        boxes: Boxes,
        prior: BoxPrior,
        temperatures: Sequence[float],
        redraw: bool,
    ) -> tuple[Tensor, Tensor]:
        energy_model = self.model.energy_model
        estimator = energy_model.uncertainty_estimator
        usual = estimator.temperature
        stds, supports = [], []
        size = estimator.rows_per_chunk
        for part, part_prior in zip(boxes.chunks(size), prior.split(size)):
            f = energy_model.density_fn(pyramid, part, part_prior)
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


def evaluate(
    args: argparse.Namespace, cfg: Config, checkpoint: str
) -> tuple[dict, dict[str, SideErrors]]:
    """Figures of a checkpoint, and the errors behind them by kind."""
    model = build_model(cfg, checkpoint, args.device)
    require_energy_model(model)
    val, test = (
        Split(model, cfg, name, args.score_thr, args.min_iou)
        for name in ('val', 'test')
    )
    error, stds, _ = val.run(TEMPERATURES, redraw=False)
    if len(error) == 0:
        raise ValueError(
            'no detection on val matches an annotation; is this '
            'checkpoint trained?'
        )
    temperature = fit_temperature(TEMPERATURES, stds, error)
    constant = constant_std(error)
    error, (usual, fitted), (support, _) = test.run(
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
    temperatures = [run['temperature'] for run in runs]
    matched = [run['fitted']['matched'] for run in runs]
    unknown = [run['fitted']['unknown'] for run in runs]
    return (
        f'{table}\n\n'
        f'Fitted temperature {spread(temperatures, ".2f")}; matched '
        f'detections on test {spread(matched, ".0f")}, without a '
        f'deviation {spread(unknown, ".0f")}.'
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
