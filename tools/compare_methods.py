"""Train every method on the same frozen detectors and compare what they gain.

Each method's energy head starts from the plain detector of each seed and
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _experiment import write_json
from _frozen import Heads, frozen_detector, parse_study_args, small_config
from tqdm import tqdm

from mmdet_ebm.evaluation.bootstrap import METRICS

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


LOSS = 'model.roi_head.refiner.loss.'
SIGMAS, LR = LOSS + 'sigmas', 'optim_wrapper.optimizer.lr'
METHODS = {
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
        tuple((s, s) for s in (0.125, 0.25, 0.5, 1.0, 2.0)),
    ),
    # SM and DSM need a smooth head; this row shows what that alone does.
    'NCE+ (SiLU)': Method(
        'nce-plus', {SIGMAS: WIDE}, {SIGMAS: NARROW}, smooth=True
    ),
}

# Sized for two CPU cores: images in a batch, augmented views of an image.
SIZES = dict(digits=(4, 1), bccd=(2, 4))
PLAIN_EPOCHS = dict(digits=8, bccd=24)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('data', choices=list(SIZES))
    parser.add_argument(
        '--work-dir', type=Path, help='default: work_dirs/methods/DATA'
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=list(METHODS),
        default=list(METHODS),
        metavar='METHOD',
        help=f'of {", ".join(METHODS)} (default: all)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='JSON file of the tables; Markdown goes beside '
        'it (default: WORK_DIR/methods.json)',
    )
    return parse_study_args(parser)


def search(train, method: Method) -> dict:
    """Settings with the highest AP on val, and all that were tried."""
    tried = []
    for changes in (method.published, method.alternative):
        head = train(method, changes)
        for step_length in method.step_lengths:
            tried.append(
                dict(
                    changes=changes,
                    step_length=step_length,
                    AP=head.evaluate('val', step_length)['AP'],
                )
            )
    return dict(max(tried, key=lambda trial: trial['AP']), tried=tried)


def run(args: argparse.Namespace, work_dir: Path, out: Path) -> None:
    batch_size, num_views = SIZES[args.data]
    figures = dict(
        data=args.data,
        steps=args.steps,
        samples=args.samples,
        batch_size=batch_size,
        views=num_views,
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
        figures['equal seconds'] = {}  # as many as NCE+ took
    methods = {name: METHODS[name] for name in args.methods}

    def train(method, changes, num_steps=args.steps):
        cfg = small_config(
            args.data,
            method.config,
            args.samples,
            {'train_dataloader.batch_size': batch_size, **changes},
        )
        if method.smooth:
            cfg.model.roi_head.refiner.head.act_cfg = dict(type='SiLU')
        return heads.train(method.config, cfg, views, num_steps)

    def add(table, name, head, metrics, **more):
        figures[table].setdefault(name, []).append(
            dict(
                metrics,
                seconds_per_step=head.seconds_per_step,
                peak_mib=head.peak_mib,
                **more,
            )
        )
        write(figures, out)

    for i, seed in enumerate(args.seeds):
        detector = frozen_detector(args, args.data, i, work_dir)
        views = detector.training_views(num_views, seed)
        heads = Heads(detector, seed, work_dir / f'seed{seed}')
        figures['seeds'].append(seed)
        figures['plain'].append(detector.evaluate_plain('test'))
        for name, method in tqdm(methods.items(), desc=f'seed {seed}'):
            head = train(method, method.published)
            add('published', name, head, head.evaluate('test'))
        for name, method in tqdm(methods.items(), desc=f'seed {seed}, search'):
            if i == 0:
                figures['search'][name] = search(train, method)
            best = figures['search'][name]
            head = train(method, best['changes'])
            add(
                'chosen',
                name,
                head,
                head.evaluate('test', best['step_length']),
            )
        if 'equal seconds' not in figures:
            continue
        # Every method's time per step is that of the first seed.
        first = {
            name: runs[0]['seconds_per_step']
            for name, runs in figures['chosen'].items()
        }
        for name, method in tqdm(methods.items(), desc=f'seed {seed}, time'):
            best = figures['search'][name]
            steps = max(1, round(args.steps * first['NCE+'] / first[name]))
            head = train(method, best['changes'], steps)
            add(
                'equal seconds',
                name,
                head,
                head.evaluate('test', best['step_length']),
                steps=steps,
            )


def markdown(figures: dict) -> str:
    """The tables: means over the seeds (lowest to highest), in per cent."""

    def row(name, runs, *more):
        cells = []
        for metric in METRICS:
            values = [100 * run[metric] for run in runs]
            cells.append(
                f'{np.mean(values):.1f} ({min(values):.1f} to '
                f'{max(values):.1f})'
            )
        return f'| {" | ".join([name, *cells, *more])} |'

    text = []
    for table in ('published', 'chosen', 'equal seconds'):
        if not figures.get(table):
            continue
        text += [
            f'**{figures["data"]}, {table}**',
            '',
            f'| method | {" | ".join(METRICS)} | step | MiB | settings |',
            '|---' * (len(METRICS) + 4) + '|',
            row('plain', figures['plain'], '', '', ''),
        ]
        reference = figures[table].get('NCE+')
        for name, runs in figures[table].items():
            # Seconds depend on the machine and its load, ratios less.
            relative = (
                ''
                if not reference
                else '{:.1f}'.format(
                    np.median(
                        [
                            a['seconds_per_step'] / b['seconds_per_step']
                            for a, b in zip(runs, reference)
                        ]
                    )
                )
            )
            settings = ''
            if table != 'published' and name in figures['search']:
                best = figures['search'][name]
                settings = ', '.join(
                    [
                        f'{key.rsplit(".")[-1]} {value}'
                        for key, value in best['changes'].items()
                    ]
                    + [f'step length {best["step_length"]}']
                )
            if 'steps' in runs[0]:
                settings = f'{runs[0]["steps"]} steps'
            text.append(
                row(
                    name,
                    runs,
                    relative,
                    f'{runs[0]["peak_mib"]:.0f}',
                    settings,
                )
            )
        text.append('')
    return '\n'.join(text)


def write(figures: dict, out: Path) -> None:
    write_json(out, figures)
    out.with_suffix('.md').write_text(markdown(figures))


def main() -> None:
    args = parse_args()
    logging.disable(logging.WARNING)  # a line for every layer of every head
    work_dir = args.work_dir or Path('work_dirs/methods', args.data)
    work_dir = work_dir.resolve()
    out = args.out or work_dir / 'methods.json'
    run(args, work_dir, out)
    print(out.with_suffix('.md').read_text())


if __name__ == '__main__':
    main()
