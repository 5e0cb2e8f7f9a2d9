"""The whole pipeline on generated data, ending in a table and pictures.

Makes the digits, trains the small detector, trains its NCE+ energy model with
the detector frozen, evaluates the plain detector and every stage of the
refinement on held-out images and refines a folder of images. Steps whose
result is already in the work dir are not repeated.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

from boltons.fileutils import atomic_save
from tabulate import tabulate

from mmdet_ebm.engine import screen
from mmdet_ebm.engine.experiments import run_tool, train_once
from mmdet_ebm.engine.progress_hook import short_path

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
METRICS = {
    'AP': 'coco/bbox_mAP',
    'AP50': 'coco/bbox_mAP_50',
    'AP75': 'coco/bbox_mAP_75',
    'AP90': 'coco/bbox_mAP_90',
}
NUM_PICTURES = 12
# The detector trains shorter than by its config (8), to end within 12 minutes.
PLAIN_EPOCHS = 6
ENERGY_EPOCHS = 6


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


def evaluate(
    checkpoint: Path,
    work_dir: Path,
    switches: dict[str, bool],
    verbose: bool,
) -> dict[str, float]:
    """Metrics on the test split, as fractions."""
    shutil.rmtree(work_dir, ignore_errors=True)
    run_tool(
        TOOLS / 'test.py',
        ENERGY_CONFIG,
        checkpoint,
        '--work-dir',
        work_dir,
        *(['--verbose'] if verbose else []),
        '--cfg-options',
        *(f'model.refinement.{name}={on}' for name, on in switches.items()),
    )
    (written,) = work_dir.glob('*/*.json')
    metrics = json.loads(written.read_text())
    return {name: metrics[key] for name, key in METRICS.items()}


def table(metrics: dict[str, dict[str, float]]) -> str:
    """In per cent, as Markdown."""
    rows = [
        [stage, *(100 * values[name] for name in METRICS)]
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

    say('1/5 Generated digits')
    run_tool(TOOLS / 'make_digits.py', data_dir)
    data = (data_dir / 'config.json').read_text()
    say('2/5 The plain detector')
    plain = train_once(
        TOOLS / 'train.py',
        PLAIN_CONFIG,
        work_dir / 'plain',
        args.seed,
        data=data,
        max_epochs=PLAIN_EPOCHS,
        verbose=args.verbose,
    )
    say('3/5 The energy model, detector frozen')
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
    say('4/5 Evaluation on held-out images')
    metrics_file = work_dir / 'metrics.json'
    metrics = {
        stage: evaluate(
            energy, work_dir / 'test' / stage, switches, args.verbose
        )
        for stage, switches in STAGES.items()
    }
    with atomic_save(str(metrics_file), text_mode=True) as file:
        json.dump(metrics, file, indent=2)
    say('5/5 A folder of images')
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
