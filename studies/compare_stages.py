"""Compare the stages of the refinement over several seeds, with intervals.

Evaluates each checkpoint of an energy config with every stage that its
detector knows switched on and off, on the val or test split, and prints AP,
AP50, AP75 and AP90 as mean and range over the checkpoints, with the seconds an
image takes. For each stage, and for a control if one is given, the difference
of the means carries a 95 % bootstrap interval over images. With --ascents, the
published schedule of the ascent and products in bfloat16 are compared with the
default.

  python -m studies.compare_stages CONFIG seed0.pth seed1.pth seed2.pth \\
      --control-config PLAIN_CONFIG --control c0.pth c1.pth c2.pth
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.core import FixedBoxDensity
from mmdet_ebm.evaluation import MatchedDetections, bootstrap_differences
from mmdet_ebm.evaluation.bootstrap import METRICS

from .files import coco_results, mean_and_range, table, write_json

STAGES = {
    'plain': dict(energy_nms=False, ascent=False, rank=False),
    'energy NMS': dict(energy_nms=True, ascent=False, rank=False),
    'ascent': dict(energy_nms=False, ascent=True, rank=False),
    'both': dict(energy_nms=True, ascent=True, rank=False),
    'refined': dict(energy_nms=False, ascent=True, rank=True),  # the default
}
# Other ways to run the ascent: its settings, the head's precision, and
# whether f is trusted alone.
ASCENTS = {
    'published schedule': (dict(num_steps=10, step_rule='decay'), None, True),
    'bfloat16': ({}, torch.bfloat16, False),
}


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.compare_stages',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='energy config')
    parser.add_argument('checkpoints', nargs='+', help='one for each seed')
    parser.add_argument(
        '--control-config', help='config of a plain detector to compare with'
    )
    parser.add_argument(
        '--control',
        nargs='+',
        default=[],
        help='its checkpoints, one for each seed',
    )
    parser.add_argument(
        '--ascents',
        action='store_true',
        help='also run the ascent in other ways',
    )
    parser.add_argument('--split', choices=['val', 'test'], default='test')
    parser.add_argument(
        '--resamples',
        type=int,
        default=1000,
        help='bootstrap resamples (default: 1000)',
    )
    parser.add_argument(
        '--out', type=Path, help='also write the figures to this JSON file'
    )
    parser.add_argument('--device', help='e.g. cuda:0 (default: cpu or a GPU)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override entries of the energy config',
    )
    args = parser.parse_args(arguments)
    if bool(args.control) != bool(args.control_config):
        parser.error('--control and --control-config go together')
    return args


def detect(
    model: nn.Module, loader: DataLoader, description: str
) -> tuple[list[dict], float]:
    """COCO results of a split and the median seconds of an image."""
    cat_ids = loader.dataset.cat_ids
    results, seconds = [], []
    for batch in tqdm(loader, desc=description):
        start = time.perf_counter()
        with torch.no_grad():
            samples = model.test_step(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / len(samples))
        for sample in samples:
            results += coco_results(
                sample.img_id, sample.pred_instances, cat_ids
            )
    return results, statistics.median(seconds)


def evaluate(
    args: argparse.Namespace,
) -> tuple[dict[str, list[MatchedDetections]], dict[str, list[float]]]:
    """Matched detections and seconds per image of each stage and run."""
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    loader = Runner.build_dataloader(cfg[f'{args.split}_dataloader'])
    loader.dataset.full_init()
    truth = COCO(cfg[f'{args.split}_evaluator'].ann_file)
    matched: dict[str, list[MatchedDetections]] = {}
    seconds: dict[str, list[float]] = {}

    def add(stage: str, model: nn.Module) -> None:
        results, cost = detect(model, loader, stage)
        matched.setdefault(stage, []).append(MatchedDetections(truth, results))
        seconds.setdefault(stage, []).append(cost)

    for checkpoint in args.checkpoints:
        model = build_model(
            args.config, checkpoint, args.device, args.cfg_options
        )
        require_energy_model(model)
        for stage, switches in STAGES.items():
            if switches['energy_nms'] and not model.box_source.can_be_ordered:
                continue
            model.refinement = dataclasses.replace(
                model.refinement, **switches
            )
            add(stage, model)
        if not args.ascents:
            continue
        model.refinement = dataclasses.replace(
            model.refinement, **STAGES['ascent']
        )
        usual, density = model.energy_model.ascent, model.energy_model.density
        for name, (settings, dtype, alone) in ASCENTS.items():
            model.energy_model.ascent = dataclasses.replace(usual, **settings)
            model.energy_model.inference_dtype = dtype
            model.energy_model.density = (
                FixedBoxDensity() if alone else density
            )
            add(name, model)
    for checkpoint in args.control:
        add(
            'control',
            build_model(args.control_config, checkpoint, args.device),
        )
    return matched, seconds


def compare(args: argparse.Namespace) -> dict:
    """The figures."""
    matched, seconds = evaluate(args)
    pairs = [
        (stage, 'plain')
        for stage in matched
        if stage not in ('plain', 'control', *ASCENTS)
    ]
    pairs += [('ascent', name) for name in ASCENTS if name in matched]
    if args.control:
        pairs += [
            (stage, 'control')
            for stage in ('both', 'ascent', 'refined')
            if stage in matched
        ]
    differences = bootstrap_differences(matched, pairs, args.resamples)
    return dict(
        config=str(args.config),
        split=args.split,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        stages={
            stage: dict(
                runs=[r.average_precision() for r in runs],
                seconds_per_image=seconds[stage],
            )
            for stage, runs in matched.items()
        },
        differences={
            f'{a} - {b}': interval for (a, b), interval in differences.items()
        },
    )


def to_markdown(figures: dict) -> str:
    """The figures in per cent: mean and range over the runs."""

    def difference(interval: dict) -> str:
        middle, low, high = (
            f'{100 * interval[key]:+.1f}'
            for key in ('difference', 'low', 'high')
        )
        return f'{middle} [{low}, {high}]'

    rows = [
        [
            stage,
            *(mean_and_range([run[m] for run in e['runs']]) for m in METRICS),
            f'{statistics.mean(e["seconds_per_image"]):.3f}',
        ]
        for stage, e in figures['stages'].items()
    ]
    rows += [
        [name, *(difference(intervals[m]) for m in METRICS), '']
        for name, intervals in figures['differences'].items()
    ]
    return table(rows, ['stage', *METRICS, 's / image'])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    with exit_with_message():
        figures = compare(args)
    print(to_markdown(figures))
    if args.out:
        write_json(args.out, figures)


if __name__ == '__main__':
    main()
