"""The whole pipeline on generated data, ending in a table and pictures.

First a tiny model on tiny images shows what f sees of one box. Then the real
thing: it makes the digits, trains the small detector, trains its NCE+ energy
model with the detector frozen, evaluates the plain detector and every stage of
the refinement on held-out images and refines a folder of images. Trainings
whose result is already in the work dir are not repeated.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

import matplotlib
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from tabulate import tabulate
from tqdm import tqdm

from mmdet_ebm.apis import build_model
from mmdet_ebm.engine import screen
from mmdet_ebm.engine.experiments import run_tool, train_once
from mmdet_ebm.engine.progress_hook import short_path
from mmdet_ebm.evaluation import MatchedDetections
from mmdet_ebm.evaluation.bootstrap import METRICS
from mmdet_ebm.evaluation.coco_matching import coco_results
from mmdet_ebm.evaluation.tuning import Trial, detections_of_trials
from mmdet_ebm.files import write_json

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs/digits'
PLAIN_CONFIG = CONFIGS / 'faster-rcnn_r18-half_digits.py'
ENERGY_CONFIG = CONFIGS / 'faster-rcnn_r18-half_nce-plus_digits.py'
STAGES = {
    'plain': dict(energy_nms=False, ascent=False, rank=False),
    'energy_nms': dict(energy_nms=True, ascent=False, rank=False),
    'ascent': dict(energy_nms=False, ascent=True, rank=False),
    'refined': dict(energy_nms=False, ascent=True, rank=True),
}
NUM_PICTURES = 12
# Shorter than by their configs (8 and 6), to end within eight minutes.
PLAIN_EPOCHS = 4
ENERGY_EPOCHS = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for everything (default: work_dirs/demo)',
    )
    parser.add_argument(
        '--data-dir',
        type=Path,
        default=Path('data/digits'),
        help='folder of the digits (default: data/digits)',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='seed of both trainings (default: 0)',
    )
    parser.add_argument(
        '--verbose', action='store_true', help='show all that mmengine logs'
    )
    return parser.parse_args()


def say(text: str) -> None:
    print(f'\n== {text}', flush=True)


def first_look(folder: Path) -> Path | None:
    """Run the notebook, and keep its picture; none without a checkout.

    A tiny energy model learns on tiny images there, in half a minute.
    """
    notebook = TOOLS.parent / 'notebooks/density_of_a_box.ipynb'
    if not notebook.exists():
        return None
    matplotlib.use('Agg')
    threads = torch.get_num_threads()
    names: dict[str, Any] = {}
    for cell in json.loads(notebook.read_text())['cells']:
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), names)
    torch.set_num_threads(threads)
    picture = folder / 'first_look.png'
    names['figure'].savefig(picture, dpi=120, bbox_inches='tight')
    return picture


def evaluate(checkpoint: Path) -> dict[str, dict[str, float]]:
    """Metrics of each stage on the test split, as fractions; detector and
    features are computed once for all stages."""
    cfg = Config.fromfile(ENERGY_CONFIG)
    init_default_scope('mmdet')
    model = build_model(cfg, checkpoint)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    loader.dataset.full_init()
    trials = [
        Trial(name, name, refinement=switches)
        for name, switches in STAGES.items()
    ]
    results: dict[str, list[dict]] = {name: [] for name in STAGES}
    for sample, instances in tqdm(
        detections_of_trials(model, loader, trials),
        total=len(loader.dataset),
        unit=' images',
        disable=None,
    ):
        for name, each in zip(STAGES, instances):
            results[name] += coco_results(
                sample.img_id, each, loader.dataset.cat_ids
            )
    truth = COCO(cfg.test_evaluator.ann_file)
    return {
        name: MatchedDetections(truth, rows).average_precision()
        for name, rows in results.items()
    }


def table(metrics: dict[str, dict[str, float]]) -> str:
    """In per cent, as Markdown."""
    rows = [
        [stage, *(100 * value for value in values.values())]
        for stage, values in metrics.items()
    ]
    return tabulate(
        rows, ['stage', *METRICS], tablefmt='github', floatfmt='.1f'
    )


def main() -> None:
    args = parse_args()
    with screen.few_lines(args.verbose):
        run(args)


def run(args: argparse.Namespace) -> None:
    start = time.time()
    work_dir, data_dir = args.work_dir.resolve(), args.data_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    os.environ['DIGITS_ROOT'] = str(data_dir)

    say('1/6 A first look: one box, a tiny model, half a minute')
    picture = first_look(work_dir)
    if picture:
        print(f'picture: {short_path(picture)}')
    say('2/6 Generated digits')
    run_tool(TOOLS / 'make_digits.py', data_dir)
    data = (data_dir / 'config.json').read_text()
    say('3/6 The plain detector')
    plain = train_once(
        TOOLS / 'train.py',
        PLAIN_CONFIG,
        work_dir / 'plain',
        args.seed,
        data=data,
        max_epochs=PLAIN_EPOCHS,
        verbose=args.verbose,
    )
    say('4/6 The energy model, detector frozen')
    energy = train_once(
        TOOLS / 'train.py',
        ENERGY_CONFIG,
        work_dir / 'nce-plus',
        args.seed,
        load_from=plain,
        data=data,
        max_epochs=ENERGY_EPOCHS,
        verbose=args.verbose,
    )
    say('5/6 Evaluation on held-out images')
    metrics_file = work_dir / 'metrics.json'
    metrics = evaluate(energy)
    write_json(metrics_file, metrics)
    say('6/6 A folder of images')
    folder = work_dir / 'images'
    folder.mkdir(exist_ok=True)
    held_out = sorted((data_dir / 'images').glob('test_*.png'))
    for path in held_out[:NUM_PICTURES]:
        shutil.copy(path, folder)
    run_tool(
        TOOLS / 'infer.py',
        ENERGY_CONFIG,
        energy,
        folder,
        '--out-dir',
        work_dir / 'inference',
        '--compare',
        '--overwrite',
    )

    say(f'Done in {(time.time() - start) / 60:.1f} minutes')
    next_command = [
        sys.executable,
        TOOLS / 'analysis/energy_map.py',
        ENERGY_CONFIG,
        energy,
        folder / held_out[0].name,
        '--out-dir',
        work_dir / 'maps',
    ]
    print(
        f'{table(metrics)}\n\n'
        f'metrics:  {short_path(metrics_file)}\n'
        f'pictures: {short_path(work_dir / "inference/index.html")}\n\n'
        'Try next: how f sees one of these objects\n'
        f'  {shlex.join(map(short_path, next_command))}\n'
        'With your own detector: docs/add_to_your_detector.md'
    )


if __name__ == '__main__':
    main()
