"""The methods once more, under the fitted density.

The same short trainings as in studies.compare_methods, with the settings that
its search chose. Then the density of each energy model is fitted on val, as
after any training, and the refined detections of the test split are compared:
with the plain ones and with those of NCE+, on the same images.

  python -m studies.methods_fitted bccd --samples 16 --plain 0.pth 1.pth 2.pth

What is done is not repeated.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner, load_checkpoint
from pycocotools.coco import COCO
from tqdm import tqdm

from mmdet_ebm.evaluation import MatchedDetections, bootstrap_differences
from mmdet_ebm.evaluation.bootstrap import METRICS
from mmdet_ebm.evaluation.placed_quality import fit_model
from mmdet_ebm.evaluation.stages import used
from mmdet_ebm.files import write_json
from mmdet_ebm.models import EnergyDetector, EnergyModel

from .compare_methods import METHODS, SIZES, add_method_arguments
from .compare_stages import STAGES, detect
from .energy_models import EnergyModels, small_config
from .files import (
    ROOT,
    interval,
    mean_and_range,
    small_config_file,
    table,
    write_with_table,
)
from .frozen import frozen_detector, parse_study_args

SEVEN = [name for name in METHODS if name not in ('IoU-Net', 'NCE+ (SiLU)')]
REFERENCE = 'NCE+'
BEFORE = ('plain', 'voted')
AFTER = ('placed', 'refined')


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.methods_fitted',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_method_arguments(parser, SEVEN)
    parser.add_argument(
        '--chosen',
        type=Path,
        help='figures of studies.compare_methods, with the chosen settings '
        '(default: docs/results/methods_DATA.json)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='JSON file of the figures; Markdown goes beside it (default: '
        'WORK_DIR/methods_fitted.json)',
    )
    return parse_study_args(parser, arguments)


def chosen_settings(path: Path) -> dict[str, dict]:
    """Changes to the config of each method, by dotted key."""
    search = json.loads(path.read_text())['search']
    return {
        name: {
            # Where the loss lay in version 0.1.
            key.replace('model.roi_head.refiner.', 'model.energy_model.'): v
            for key, v in found['changes'].items()
        }
        for name, found in search.items()
    }


def use_fitted(cfg: Config, checkpoint: Path, trained: EnergyModel) -> dict:
    """Fit on val and detect on test.

    Returns:
        ``results`` by stage, the ``line`` of the fit, and the ``density``.
    """
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(checkpoint), 'cpu', logger='silent')
    weights = trained.state_dict()  # of a model without a fitted density
    model.energy_model.load_state_dict(weights, strict=False)
    model.to(next(trained.parameters()).device).eval()
    density = model.energy_model.density
    line = fit_model(model, Runner.build_dataloader(cfg.val_dataloader))
    results = detect_stages(model, cfg, AFTER)
    return dict(results=results, line=line, density=density.numbers())


def detect_stages(
    model: EnergyDetector, cfg: Config, stages: Sequence[str]
) -> dict[str, list[dict]]:
    """COCO results of the test split by stage."""
    loader = Runner.build_dataloader(cfg.test_dataloader)
    loader.dataset.full_init()
    results = {}
    for name in stages:
        with used(model, STAGES[name]):
            results[name], _ = detect(model, loader, name)
    return results


def results_of(
    args: argparse.Namespace, index: int, work_dir: Path
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    """Of a seed: results before, and what :func:`use_fitted` gives by method.

    No energy model is asked in the stages before.
    """
    seed = args.seeds[index]
    batch_size, num_views = SIZES[args.data]
    folder = work_dir / f'seed{seed}'
    detector = frozen_detector(args, args.data, index, work_dir)
    settings = chosen_settings(
        args.chosen or ROOT / f'docs/results/methods_{args.data}.json'
    )
    before = folder / 'before.json'
    if not before.exists():
        write_json(before, detect_stages(detector.model, detector.cfg, BEFORE))
    models = EnergyModels(detector, seed, folder)
    views = None
    found = {}
    for name in tqdm(args.methods, desc=f'seed {seed}'):
        kind = METHODS[name].config
        path = folder / f'{kind}_{args.steps}_fitted.json'
        if not path.exists():
            if views is None:
                views = detector.training_views(num_views, seed)
            cfg = small_config(
                args.data,
                kind,
                args.samples,
                {
                    'train_dataloader.batch_size': batch_size,
                    **settings[name],
                },
                published=False,
            )
            trained = models.trained(f'{kind}_fitted', cfg, views, args.steps)
            write_json(
                path,
                use_fitted(cfg, detector.checkpoint, trained.energy_model),
            )
        found[name] = json.loads(path.read_text())
    return json.loads(before.read_text()), found


def compare(args: argparse.Namespace, work_dir: Path) -> dict:
    """The figures."""
    cfg = Config.fromfile(small_config_file(args.data, 'nce-plus'))
    truth = COCO(cfg.test_evaluator.ann_file)
    matched: dict[str, list[MatchedDetections]] = {}
    fits: dict[str, list[dict]] = {}
    for index in range(len(args.seeds)):
        results, found = results_of(args, index, work_dir)
        for name, each in found.items():
            for stage, after in each.pop('results').items():
                results[f'{name}, {stage}'] = after
            fits.setdefault(name, []).append(each)
        for key, detections in results.items():
            matched.setdefault(key, []).append(
                MatchedDetections(truth, detections)
            )
    last = AFTER[-1]
    pairs = [(f'{name}, {last}', before) for name in fits for before in BEFORE]
    if REFERENCE in fits:
        pairs += [
            (f'{name}, {stage}', f'{REFERENCE}, {stage}')
            for name in fits
            for stage in AFTER
            if name != REFERENCE
        ]
    differences = bootstrap_differences(matched, pairs)
    return dict(
        data=args.data,
        steps=args.steps,
        samples=args.samples,
        seeds=args.seeds,
        torch=torch.__version__,
        stages={
            key: [run.average_precision() for run in runs]
            for key, runs in matched.items()
        },
        fits=fits,
        differences={f'{a} - {b}': d for (a, b), d in differences.items()},
    )


def to_markdown(figures: dict) -> str:
    """In per cent: means over the seeds, and differences with intervals."""
    rows = [
        [name, *(mean_and_range([run[m] for run in runs]) for m in METRICS)]
        for name, runs in figures['stages'].items()
    ]
    rows += [
        [name, *(interval(difference[m]) for m in METRICS)]
        for name, difference in figures['differences'].items()
    ]
    return table(rows, ['', *METRICS])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    logging.disable(logging.WARNING)  # a line for every layer of every head
    work_dir = args.work_dir or Path('work_dirs/methods', args.data)
    work_dir = work_dir.resolve()
    figures = compare(args, work_dir)
    out = args.out or work_dir / 'methods_fitted.json'
    write_with_table(figures, out, to_markdown)
    print(to_markdown(figures))


if __name__ == '__main__':
    main()
