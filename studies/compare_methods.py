"""Train every method on the same frozen detectors and compare what they gain.

Each method's energy model starts from the plain detector of each seed and
trains for the same number of steps on the same images in the same order, with
the published settings and with those that a small search on the val split
chose, the same search for all (first seed only): two settings of the
training, five step lengths of the ascent. The refined detections are then
evaluated on the test split. On the digits a third table gives every method
the same time instead of the same steps.

The table, as Markdown and JSON, holds what is finished; a run that was
interrupted continues.
"""

import argparse
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from mmdet_ebm.evaluation.bootstrap import METRICS

from .energy_models import EnergyModels, TrainedModel, small_config
from .files import mean_and_range, table, write_with_table
from .frozen import FrozenDetector, frozen_detector, parse_study_args

WIDE, NARROW = (0.075, 0.15, 0.3), (0.0375, 0.075, 0.15)
# Centre; the size's is four times that, as published for every method.
STEPS = (2.5e-5, 1e-4, 4e-4, 8e-4, 32e-4)


@dataclass(frozen=True)
class Method:
    """What is trained under a name.

    Attributes:
        config: Kind of config, as in its file name.
        published: Published values that the search varies, by dotted key of
            the config. SM has none: its learning rate is varied.
        alternative: The search's other values of them.
        step_lengths: The search's step lengths.
        smooth: Give the head a SiLU activation.
    """

    config: str
    published: dict
    alternative: dict
    step_lengths: tuple = tuple((step, 4 * step) for step in STEPS)
    smooth: bool = False


LOSS = 'model.energy_model.loss.'
SIGMAS, LR = LOSS + 'sigmas', 'optim_wrapper.optimizer.lr'
METHODS: Mapping[str, Method] = {
    'ML-IS': Method('ml-is', {SIGMAS: NARROW}, {SIGMAS: WIDE}),
    'ML-MCMC-8': Method(
        'ml-mcmc-8', {LOSS + 'step_size': 1e-5}, {LOSS + 'step_size': 0.02}
    ),
    'KLD-IS': Method('kld-is', {SIGMAS: NARROW}, {SIGMAS: WIDE}),
    'NCE': Method('nce', {SIGMAS: WIDE}, {SIGMAS: NARROW}),
    'SM': Method('sm', {LR: 5e-4}, {LR: 15e-4}),
    'DSM': Method('dsm', {LOSS + 'sigma': 0.075}, {LOSS + 'sigma': 0.0375}),
    'NCE+': Method('nce-plus', {SIGMAS: WIDE}, {SIGMAS: NARROW}),
    'IoU-Net': Method(
        'iou-net',
        {LOSS + 'min_iou': 0.5},
        {LOSS + 'min_iou': 0.3},
        (0.125, 0.25, 0.5, 1.0, 2.0),
    ),
    # SM and DSM need a smooth head; this row shows what that alone does.
    'NCE+ (SiLU)': Method(
        'nce-plus', {SIGMAS: WIDE}, {SIGMAS: NARROW}, smooth=True
    ),
}

# Sized for two CPU cores: images in a batch, augmented views of an image.
SIZES = dict(digits=(4, 1), bccd=(2, 4))


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.compare_methods',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_method_arguments(parser, list(METHODS))
    parser.add_argument(
        '--out',
        type=Path,
        help='JSON file of the tables; Markdown goes beside '
        'it (default: WORK_DIR/methods.json)',
    )
    return parse_study_args(parser, arguments)


def add_method_arguments(
    parser: argparse.ArgumentParser, methods: Sequence[str]
) -> None:
    """Data, work dir and which of some methods."""
    parser.add_argument('data', choices=list(SIZES))
    parser.add_argument(
        '--work-dir', type=Path, help='default: work_dirs/methods/DATA'
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=methods,
        default=methods,
        metavar='METHOD',
        help=f'of {", ".join(methods)} (default: all)',
    )


class Study:
    """The figures as they come in.

    Args:
        args: Of the command line.
        work_dir: Folder of everything that is trained.
        out: JSON file of the figures.
    """

    def __init__(
        self, args: argparse.Namespace, work_dir: Path, out: Path
    ) -> None:
        self._args, self._work_dir, self._out = args, work_dir, out
        self._batch_size, self._num_views = SIZES[args.data]
        self._methods = {name: METHODS[name] for name in args.methods}
        self.figures: dict = dict(
            data=args.data,
            steps=args.steps,
            samples=args.samples,
            batch_size=self._batch_size,
            views=self._num_views,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            device=args.device,
            seeds=[],
            plain=[],
            published={},
            chosen={},
            search={},
        )
        if args.data == 'digits' and 'NCE+' in args.methods:
            self.figures['equal seconds'] = {}  # as many as NCE+ took

    def run(self) -> None:
        """All seeds, one after the other."""
        for index, seed in enumerate(self._args.seeds):
            detector = frozen_detector(
                self._args, self._args.data, index, self._work_dir
            )
            self.figures['seeds'].append(seed)
            self.figures['plain'].append(detector.evaluate('test'))
            train = self._trainer(detector, seed)
            for name, method in self._each(f'seed {seed}'):
                self._add('published', name, train(method, method.published))
            for name, method in self._each(f'seed {seed}, search'):
                if index == 0:
                    self.figures['search'][name] = search(train, method)
                best = self.figures['search'][name]
                self._add(
                    'chosen',
                    name,
                    train(method, best['changes']),
                    best['step_length'],
                )
            if 'equal seconds' in self.figures:
                self._give_equal_seconds(train, seed)

    def _each(self, description: str) -> tqdm:
        return tqdm(self._methods.items(), desc=description)

    def _give_equal_seconds(
        self, train: Callable[..., TrainedModel], seed: int
    ) -> None:
        # Every method's time per step is that of the first seed.
        first = {
            name: runs[0]['seconds_per_step']
            for name, runs in self.figures['chosen'].items()
        }
        for name, method in self._each(f'seed {seed}, time'):
            best = self.figures['search'][name]
            steps = max(
                1, round(self._args.steps * first['NCE+'] / first[name])
            )
            self._add(
                'equal seconds',
                name,
                train(method, best['changes'], steps),
                best['step_length'],
                steps=steps,
            )

    def _trainer(
        self, detector: FrozenDetector, seed: int
    ) -> Callable[..., TrainedModel]:
        """Trains a method with changes to its config, unless it is done."""
        views = detector.training_views(self._num_views, seed)
        models = EnergyModels(detector, seed, self._work_dir / f'seed{seed}')

        def train(
            method: Method, changes: dict, num_steps: int = self._args.steps
        ) -> TrainedModel:
            cfg = small_config(
                self._args.data,
                method.config,
                self._args.samples,
                {'train_dataloader.batch_size': self._batch_size, **changes},
            )
            if method.smooth:
                cfg.model.energy_model.head.act_cfg = dict(type='SiLU')
            return models.trained(method.config, cfg, views, num_steps)

        return train

    def _add(
        self,
        part: str,
        name: str,
        model: TrainedModel,
        step_length: tuple[float, float] | float | None = None,
        **more: float,
    ) -> None:
        self.figures[part].setdefault(name, []).append(
            dict(
                model.evaluate('test', step_length),
                seconds_per_step=model.seconds_per_step,
                peak_mib=model.peak_mib,
                **more,
            )
        )
        write_with_table(self.figures, self._out, to_markdown)


def search(train: Callable[..., TrainedModel], method: Method) -> dict:
    """Settings with the highest AP on val, and all that were tried."""
    tried = []
    for changes in (method.published, method.alternative):
        model = train(method, changes)
        for step_length in method.step_lengths:
            tried.append(
                dict(
                    changes=changes,
                    step_length=step_length,
                    AP=model.evaluate('val', step_length)['AP'],
                )
            )
    return dict(max(tried, key=lambda trial: trial['AP']), tried=tried)


def to_markdown(figures: dict) -> str:
    """The tables: means over the seeds (lowest to highest), in per cent."""
    text = []
    for part in ('published', 'chosen', 'equal seconds'):
        if not figures.get(part):
            continue
        rows = [['plain', *_metrics(figures['plain']), '', '', '']]
        reference = figures[part].get('NCE+')
        for name, runs in figures[part].items():
            best = figures['search'].get(name) if part == 'chosen' else None
            rows.append(
                [
                    name,
                    *_metrics(runs),
                    _relative_time(runs, reference),
                    f'{runs[0]["peak_mib"]:.0f}',
                    _settings(runs[0], best),
                ]
            )
        headers = ['method', *METRICS, 'step', 'MiB', 'settings']
        text += [f'**{figures["data"]}, {part}**', '']
        text += [table(rows, headers), '']
    return '\n'.join(text)


def _metrics(runs: Sequence[dict]) -> list[str]:
    return [
        mean_and_range([run[metric] for run in runs]) for metric in METRICS
    ]


def _relative_time(
    runs: Sequence[dict], reference: Sequence[dict] | None
) -> str:
    """Seconds depend on the machine and its load, ratios less."""
    if not reference:
        return ''
    ratios = [
        a['seconds_per_step'] / b['seconds_per_step']
        for a, b in zip(runs, reference)
    ]
    return f'{statistics.median(ratios):.1f}'


def _settings(run: dict, best: dict | None) -> str:
    """What a row was run with beside the published settings."""
    if 'steps' in run:
        return f'{run["steps"]} steps'
    if best is None:
        return ''
    changes = [
        f'{key.rsplit(".")[-1]} {value}'
        for key, value in best['changes'].items()
    ]
    return ', '.join([*changes, f'step length {best["step_length"]}'])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    logging.disable(logging.WARNING)  # a line for every layer of every head
    work_dir = args.work_dir or Path('work_dirs/methods', args.data)
    work_dir = work_dir.resolve()
    study = Study(args, work_dir, args.out or work_dir / 'methods.json')
    study.run()
    print(to_markdown(study.figures))


if __name__ == '__main__':
    main()
