"""What each choice at test time is worth on val, and a config with the best.

Steps of the ascent, temperature, width of the prior, votes and ranking are
changed one at a time. The detector and the features are computed once for each
image and serve all of them. Printed are AP, AP75 and AP90, with the gain of AP
over what the checkpoint does now and its 95 % interval over the images.

A change is taken if its interval lies above 0. The changes that are taken are
tried together, and OUT is written: a config that changes the one given by as
much. If nothing pays, it changes nothing and says so.

Many choices are tried on one set, so the gain of the chosen ones is somewhat
too good: measure it on images that were not used here.

An interrupted run goes on where it was with the same command; what it found so
far is in OUT.jsonl.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmdet_ebm.process_settings  # noqa: F401

# isort: split
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from tabulate import tabulate
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from mmdet_ebm.apis import build_model, checks, data_checks
from mmdet_ebm.apis.results_folder import write_file
from mmdet_ebm.core import FixedBoxDensity
from mmdet_ebm.engine import screen
from mmdet_ebm.engine.config_options import add_model_arguments
from mmdet_ebm.engine.progress_hook import PassProgress
from mmdet_ebm.evaluation import MatchedDetections
from mmdet_ebm.evaluation.coco_matching import coco_results, part_of
from mmdet_ebm.evaluation.placed_quality import fit_model
from mmdet_ebm.evaluation.tuning import (
    NOW,
    PLAIN,
    Trial,
    Worth,
    choose,
    detections_of_trials,
    trials_of,
    worth_of,
)
from mmdet_ebm.models import EnergyDetector


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('tuned.py'),
        help='config to write (default: tuned.py)',
    )
    parser.add_argument(
        '--num-images',
        type=int,
        default=500,
        help='images of val to use at most, the first ones (default: 500)',
    )
    parser.add_argument(
        '--resamples',
        type=int,
        default=300,
        help='bootstrap resamples for the intervals (default: 300)',
    )
    args = parser.parse_args()
    if args.out.suffix != '.py':
        parser.error(f'--out must be a config file (.py), got {args.out}')
    for name in ('num_images', 'resamples'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    return args


# Of what was found so far: for single changes, and for all taken together.
_STORES = ('.jsonl', '.together.jsonl')


class Tuning:
    """Trials on the val split of a config.

    Args:
        args: Of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        cfg = Config.fromfile(args.config)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        self.model: EnergyDetector = build_model(
            cfg, args.checkpoint, args.device
        )
        checks.require_energy_model(self.model)
        with data_checks.naming_bad_annotations(cfg):
            loader = Runner.build_dataloader(cfg.val_dataloader)
            loader.dataset.full_init()
        self.truth = COCO(cfg.val_evaluator.ann_file)
        self.cat_ids = loader.dataset.cat_ids
        self.number = min(args.num_images, len(loader.dataset))
        self.loader = loader
        density = self.model.energy_model.density
        self.fitted_here = not (
            density.fitted or isinstance(density, FixedBoxDensity)
        )
        if self.fitted_here:
            print('the density was never fitted; fitting it first')
            print(fit_model(self.model, PassProgress(loader, 'fit')))

    def matched(
        self, trials: Sequence[Trial], store: Path
    ) -> dict[str, MatchedDetections]:
        """Detections of all trials, matched to the annotations.

        Args:
            trials: Ways to use the model.
            store: File of what was found so far.
        """
        key = self._key(trials)
        lines = _read_lines(store)
        if not lines or lines[0] != key:
            lines = [key]
        done = lines[1:]
        with open(store, 'w') as file:
            file.writelines(json.dumps(line) + '\n' for line in lines)
            for line in self._computed(trials, len(done)):
                done.append(line)
                file.write(json.dumps(line) + '\n')
                file.flush()
                os.fsync(file.fileno())
        ids = [line['image'] for line in done]
        truth = _part(self.truth, ids)
        return {
            trial.name: MatchedDetections(
                truth, [row for line in done for row in line['results'][i]]
            )
            for i, trial in enumerate(trials)
        }

    def _computed(self, trials: Sequence[Trial], start: int):
        rest = range(start, self.number)
        loader = DataLoader(
            Subset(self.loader.dataset, rest),
            batch_size=self.loader.batch_size,
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
        )
        progress = tqdm(
            detections_of_trials(self.model, loader, trials),
            desc=f'{len(trials)} choices',
            initial=start,
            total=self.number,
            unit=' images',
            disable=None,
        )
        for sample, instances in progress:
            yield dict(
                image=sample.img_id,
                results=[
                    coco_results(sample.img_id, each, self.cat_ids)
                    for each in instances
                ],
            )

    def _key(self, trials: Sequence[Trial]) -> dict[str, Any]:
        digest = hashlib.sha256()
        with open(self.args.checkpoint, 'rb') as file:
            while part := file.read(2**20):
                digest.update(part)
        return dict(
            checkpoint=digest.hexdigest(),
            model=hashlib.sha256(
                repr(self.model.cfg.model).encode()
            ).hexdigest(),
            trials=[_plain(vars(trial)) for trial in trials],
            images=self.number,
        )


def _plain(value: Any) -> Any:
    """As it is after writing and reading JSON."""
    return json.loads(json.dumps(value))


def _read_lines(path: Path) -> list[Any]:
    """Whole lines of a file that may not exist or end in the middle."""
    lines = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


def _part(truth: COCO, ids: Sequence[int]) -> COCO:
    """The annotations of some images."""
    part = COCO()
    part.dataset = part_of(truth.dataset, ids)
    part.createIndex()
    return part


def table(worth: dict[str, Worth]) -> str:
    """Figures in per cent."""

    def gain(each: Worth, name: str) -> str:
        if not each.gain:
            return ''
        return '{difference:+.2f} [{low:+.2f}, {high:+.2f}]'.format(
            **{key: 100 * value for key, value in each.gain[name].items()}
        )

    rows = [
        [
            name,
            *(f'{100 * each.figures[m]:.1f}' for m in ('AP', 'AP75', 'AP90')),
            gain(each, 'AP'),
        ]
        for name, each in worth.items()
    ]
    return tabulate(
        rows,
        ['choice', 'AP', 'AP75', 'AP90', 'gain of AP'],
        tablefmt='github',
        disable_numparse=True,
    )


def delta(args: argparse.Namespace, tuning: Tuning, chosen: Trial) -> str:
    """Text of a config that makes the chosen changes."""
    base = os.path.relpath(args.config, args.out.resolve().parent)
    density = tuning.model.energy_model.density
    what = [] if chosen.name == NOW else [chosen.name]
    if tuning.fitted_here:
        what.insert(0, 'density fitted on val')
    lines = [
        f'# Made by tune: {", ".join(what) or "nothing to change"}.',
        f'_base_ = [{base!r}]',
    ]
    if args.cfg_options:
        given = ' '.join(f'{k}={v}' for k, v in args.cfg_options.items())
        lines.insert(1, f'# It was made with --cfg-options {given}')
        lines.insert(2, '# They are not in this file: give them again.')
    model: dict[str, Any] = {}
    energy_model: dict[str, Any] = {}
    if chosen.density or tuning.fitted_here:
        # In place of what the checkpoint holds.
        numbers = {**density.numbers(), **chosen.density}
        energy_model['density'] = dict(_delete_=True, **numbers)
    if chosen.ascent:
        energy_model['ascent'] = dict(chosen.ascent)
    if energy_model:
        model['energy_model'] = energy_model
    if chosen.refinement:
        model['refinement'] = dict(chosen.refinement)
    if model:
        lines.append(f'model = {_as_code(model)}')
    return '\n'.join(lines) + '\n'


def _as_code(value: Any) -> str:
    if isinstance(value, dict):
        inside = ', '.join(f'{k}={_as_code(v)}' for k, v in value.items())
        return f'dict({inside})'
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    return repr(value)


def tune(args: argparse.Namespace) -> None:
    """Try, show, choose and write."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tuning = Tuning(args)
    trials = trials_of(tuning.model)
    stores = [args.out.with_suffix(each) for each in _STORES]
    worth = worth_of(tuning.matched(trials, stores[0]), args.resamples)
    print(table(worth))
    chosen = choose(trials, worth)
    if chosen.group == 'joined':
        together = worth_of(
            tuning.matched([trials[0], chosen], stores[1]), args.resamples
        )
        print('together:')
        print(table(together))
        worth[chosen.name] = together[chosen.name]
        if not worth[chosen.name].surely_pays:
            chosen = choose(trials, worth, join=False)
    if chosen.name == NOW:
        print('No change surely pays, so nothing is changed.')
    else:
        print(f'taken: {chosen.name}')
    gain = worth[chosen.name].figures['AP'] - worth[PLAIN].figures['AP']
    print(f'With it {100 * gain:+.1f} AP beside the detector alone, on val.')
    write_file(args.out, delta(args, tuning, chosen))
    figures = {name: dataclasses.asdict(each) for name, each in worth.items()}
    report = args.out.with_suffix('.json')
    write_file(report, json.dumps(dict(chosen=chosen.name, trials=figures)))
    for store in stores:
        store.unlink(missing_ok=True)
    print(f'wrote {args.out}, and all figures to {report}')


def main() -> None:
    args = parse_args()
    with screen.few_lines(), checks.exit_with_message():
        tune(args)


if __name__ == '__main__':
    main()
