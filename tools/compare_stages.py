"""Compare the stages of the refinement over several seeds, with intervals.

Evaluates each checkpoint of an energy config with every stage that its
detector knows switched on and off, on the val or test split, and prints AP,
AP50, AP75 and AP90 as mean and range over the checkpoints, with the seconds an
image takes. For each stage, and for a control if one is given, the difference
of the means carries a 95 % bootstrap interval over images. With --ascents, the
published schedule of the ascent and products in bfloat16 are compared with the
default.

  python tools/compare_stages.py CONFIG seed0.pth seed1.pth seed2.pth \\
      --control-config PLAIN_CONFIG --control c0.pth c1.pth c2.pth
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from _experiment import changed, coco_results
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.evaluation import MatchedDetections, bootstrap_differences
from mmdet_ebm.evaluation.bootstrap import METRICS

STAGES = {
    'plain': dict(energy_nms=False, ascent=False),
    'energy NMS': dict(energy_nms=True, ascent=False),
    'ascent': dict(energy_nms=False, ascent=True),
    'both': dict(energy_nms=True, ascent=True),
}
# Other ways to run the ascent: settings of the refiner.
ASCENTS = {
    'published schedule': dict(num_steps=10, step_rule='decay'),
    'bfloat16': dict(inference_dtype=torch.bfloat16),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
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
    args = parser.parse_args()
    if bool(args.control) != bool(args.control_config):
        parser.error('--control and --control-config go together')
    return args


def run(model, loader, description):
    """COCO results of a split and the median seconds of an image."""
    dataset = loader.dataset
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
                sample.img_id, sample.pred_instances, dataset.cat_ids
            )
    return results, statistics.median(seconds)


def evaluate(args):
    """Matched detections and seconds per image of each stage and run."""
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    loader = Runner.build_dataloader(cfg[f'{args.split}_dataloader'])
    loader.dataset.full_init()
    truth = COCO(cfg[f'{args.split}_evaluator'].ann_file)
    matched, seconds = {}, {}

    def add(stage, model):
        results, cost = run(model, loader, stage)
        matched.setdefault(stage, []).append(MatchedDetections(truth, results))
        seconds.setdefault(stage, []).append(cost)

    for checkpoint in args.checkpoints:
        model = build_model(
            args.config, checkpoint, args.device, args.cfg_options
        )
        for stage, switches in STAGES.items():
            if switches['energy_nms'] and not model.orders_by_energy:
                continue
            model.refinement = dataclasses.replace(
                model.refinement, **switches
            )
            add(stage, model)
        if args.ascents:
            model.refinement = dataclasses.replace(
                model.refinement, **STAGES['ascent']
            )
            for name, settings in ASCENTS.items():
                with changed(model.refiner, settings):
                    add(name, model)
    for checkpoint in args.control:
        add(
            'control',
            build_model(args.control_config, checkpoint, args.device),
        )
    return matched, seconds


def table(figures: dict) -> str:
    """The figures in Markdown, per cent: mean and range over the runs."""
    lines = [
        '| stage | ' + ' | '.join(METRICS) + ' | s / image |',
        '|---|' + '---|' * (len(METRICS) + 1),
    ]
    for stage, entry in figures['stages'].items():
        cells = []
        for metric in METRICS:
            values = [100 * run[metric] for run in entry['runs']]
            cells.append(
                f'{np.mean(values):.1f} ({min(values):.1f} to '
                f'{max(values):.1f})'
            )
        lines.append(
            f'| {stage} | {" | ".join(cells)} | '
            f'{np.mean(entry["seconds_per_image"]):.3f} |'
        )
    for name, interval in figures['differences'].items():
        cells = [
            f'{100 * interval[m]["difference"]:+.1f} '
            f'[{100 * interval[m]["low"]:+.1f}, '
            f'{100 * interval[m]["high"]:+.1f}]'
            for m in METRICS
        ]
        lines.append(f'| {name} | {" | ".join(cells)} | |')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
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
            for stage in ('both', 'ascent')
            if stage in matched
        ]
    figures = dict(
        config=args.config,
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
            f'{a} - {b}': interval
            for (a, b), interval in bootstrap_differences(
                matched, pairs, args.resamples
            ).items()
        },
    )
    print(table(figures))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=2))


if __name__ == '__main__':
    main()
