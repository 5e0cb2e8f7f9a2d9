"""Compare the stages of the refinement over several seeds, with intervals.

Evaluates each checkpoint of an energy config in several ways, on the val or
test split: the detector's own boxes; the means of their clusters; the same
with scores that follow the clusters; boxes placed by f alone, and as
published; and boxes under the fitted density, without and with the ranking.
Prints AP, AP50, AP75 and AP90 as mean and range over the checkpoints, with the
seconds an image takes. For each stage, and for a control if one is given, the
difference of the means carries a 95 % bootstrap interval over images. With
--ascents, the published schedule of the ascent and products in bfloat16 are
compared with the default.

  python -m studies.compare_stages CONFIG seed0.pth seed1.pth seed2.pth \\
      --control-config PLAIN_CONFIG --control c0.pth c1.pth c2.pth
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.core import BoxDensity
from mmdet_ebm.engine.config_options import ConfigOptions
from mmdet_ebm.evaluation import MatchedDetections, bootstrap_differences
from mmdet_ebm.evaluation.bootstrap import METRICS
from mmdet_ebm.evaluation.coco_matching import coco_results
from mmdet_ebm.evaluation.stages import Stage, used
from mmdet_ebm.files import write_json

from .files import config_name, interval, mean_and_range, table

_OFF = dict(energy_nms=False, ascent=False, rank=False)
# No prior, and f as it was learned.
_ALONE = BoxDensity().numbers()
_PUBLISHED = dict(num_steps=10, step_rule='decay')
# Without a prior there are no medians, which save steps.
_FOUR_STEPS = dict(num_steps=4)
# What each adds to the one before it; the last is the default.
STAGES = {
    'plain': Stage(_OFF),
    # Clusters alone: no energy model is asked.
    'voted': Stage(
        dict(_OFF, ascent=True),
        dict(_ALONE, temperature=math.inf, vote_share=1.0),
    ),
    # The same with the scores that were fitted, as far as clusters have a say.
    'clusters': Stage(
        dict(_OFF, ascent=True, rank=True),
        dict(temperature=math.inf, vote_share=1.0, quality_power=0.0),
    ),
    'f alone': Stage(dict(_OFF, ascent=True), _ALONE, _FOUR_STEPS),
    'published': Stage(
        dict(_OFF, ascent=True, energy_nms=True), _ALONE, _PUBLISHED
    ),
    'placed': Stage(dict(_OFF, ascent=True)),
    'refined': Stage(dict(_OFF, ascent=True, rank=True)),
}
# Other ways to run the ascent, each beside the stage that it changes.
ASCENTS = {
    'f alone, published schedule': (
        'f alone',
        replace(STAGES['f alone'], ascent=_PUBLISHED),
    ),
    'refined, published schedule': (
        'refined',
        replace(STAGES['refined'], ascent=_PUBLISHED),
    ),
    'refined, bfloat16': (
        'refined',
        replace(STAGES['refined'], dtype=torch.bfloat16),
    ),
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
        '--stages',
        nargs='+',
        choices=STAGES,
        default=list(STAGES),
        help='default: all of them',
    )
    parser.add_argument(
        '--ascents',
        action='store_true',
        help='also run the ascents of these stages in other ways',
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
        action=ConfigOptions,
        help='override entries of the energy config',
    )
    args = parser.parse_args(arguments)
    if bool(args.control) != bool(args.control_config):
        parser.error('--control and --control-config go together')
    return args


def chosen_stages(names: Sequence[str], ascents: bool) -> dict[str, Stage]:
    """Stages by name, on demand with the other ascents of each."""
    stages = {name: STAGES[name] for name in names}
    if ascents:
        stages |= {
            name: way
            for name, (stage, way) in ASCENTS.items()
            if stage in names
        }
    return stages


def needs_candidates(stage: Stage) -> bool:
    """Whether it needs the boxes before NMS."""
    votes = stage.numbers.get('vote_share', 0.0) > 0
    return stage.switches['energy_nms'] or votes


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


def detect_stages(
    model: nn.Module, loader: DataLoader, stages: Mapping[str, Stage]
) -> Iterator[tuple[str, list[dict], float]]:
    """What :func:`detect` gives, by name, for the stages a model can run."""
    for name, stage in stages.items():
        if needs_candidates(stage) and not model.box_source.can_be_ordered:
            continue
        with used(model, stage):
            results, seconds = detect(model, loader, name)
        yield name, results, seconds


def evaluate(
    args: argparse.Namespace,
) -> tuple[dict[str, list[MatchedDetections]], dict[str, list[float]]]:
    """Matched detections and seconds per image of each stage and run."""
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    loader = Runner.build_dataloader(cfg[f'{args.split}_dataloader'])
    loader.dataset.full_init()
    truth = COCO(cfg[f'{args.split}_evaluator'].ann_file)
    matched: dict[str, list[MatchedDetections]] = {}
    seconds: dict[str, list[float]] = {}

    def add(stage: str, results: list[dict], cost: float) -> None:
        matched.setdefault(stage, []).append(MatchedDetections(truth, results))
        seconds.setdefault(stage, []).append(cost)

    for checkpoint in args.checkpoints:
        model = build_model(
            args.config, checkpoint, args.device, args.cfg_options
        )
        require_energy_model(model)
        stages = chosen_stages(args.stages, args.ascents)
        for found in detect_stages(model, loader, stages):
            add(*found)
    for checkpoint in args.control:
        model = build_model(args.control_config, checkpoint, args.device)
        add('control', *detect(model, loader, 'control'))
    return matched, seconds


def summary(
    matched: dict[str, list[MatchedDetections]],
    seconds: dict[str, list[float]],
    num_resamples: int,
) -> dict:
    """Figures of each stage, and the differences that matter."""
    pairs = [(stage, 'plain') for stage in STAGES if stage != 'plain']
    pairs += [
        ('refined', 'voted'),
        ('refined', 'clusters'),
        *((stage, name) for name, (stage, _) in ASCENTS.items()),
        ('voted', 'control'),
        ('clusters', 'control'),
        ('refined', 'control'),
    ]
    pairs = [pair for pair in pairs if matched.keys() >= set(pair)]
    differences = bootstrap_differences(matched, pairs, num_resamples)
    return dict(
        stages={
            stage: dict(
                runs=[r.average_precision() for r in runs],
                seconds_per_image=seconds[stage],
            )
            for stage, runs in matched.items()
        },
        differences={
            f'{a} - {b}': found for (a, b), found in differences.items()
        },
    )


def compare(args: argparse.Namespace) -> dict:
    """The figures."""
    return dict(
        config=config_name(args.config),
        split=args.split,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        **summary(*evaluate(args), args.resamples),
    )


def to_markdown(figures: dict) -> str:
    """The figures in per cent: mean and range over the runs."""

    rows = [
        [
            stage,
            *(mean_and_range([run[m] for run in e['runs']]) for m in METRICS),
            f'{statistics.mean(e["seconds_per_image"]):.3f}',
        ]
        for stage, e in figures['stages'].items()
    ]
    rows += [
        [name, *(interval(intervals[m]) for m in METRICS), '']
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
