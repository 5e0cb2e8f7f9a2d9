"""Train a detector or its energy model, as mmdet's own tool does.

Trainings resume exactly (docs/training.md). At the end of an energy model's
training its density is fitted on the val split, and the last checkpoint holds
it (docs/density.md). tools/dist_train.sh starts several processes, on GPUs or
on a CPU.
"""

import argparse
import os
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_ebm.apis import checks, data_checks
from mmdet_ebm.checkpoint_files import load_checkpoint_file
from mmdet_ebm.engine import (
    fit_at_the_end,
    join_processes,
    keep_images_aside,
    latest_checkpoint,
    make_resumable,
    measure_noise,
    remove_crops,
    screen,
    use_amp,
)
from mmdet_ebm.engine.config_options import ConfigOptions
from mmdet_ebm.engine.launch import trains_energy_alone


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('config', help='train config file')
    parser.add_argument(
        '--work-dir',
        help="folder for logs and checkpoints (default: the config's, else "
        'work_dirs/<config name>)',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: float16 on a GPU, bfloat16 on a CPU '
        '(energy models on a frozen detector only). The pooling stays in '
        'float32',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the real batch size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint; without a value, from the latest '
        'one in the work dir, if there is one',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='override config entries, e.g. randomness.seed=1 '
        'model.freeze_detector=False key="[a,b]"',
    )
    parser.add_argument(
        '--verbose',
        action='store_true',
        help='show all that goes to the log file, instead of progress',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='set by torch.distributed.launch',
    )
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def build_config(args: argparse.Namespace) -> Config:
    """The config file with the command line's changes applied."""
    with checks.exit_with_message():
        cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if not {'enable', 'base_batch_size'} <= set(
            cfg.get('auto_scale_lr', {})
        ):
            raise SystemExit(
                '--auto-scale-lr needs auto_scale_lr = dict(enable=..., '
                f'base_batch_size=...) in {args.config}, which has '
                f'{cfg.get("auto_scale_lr")}'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto' or (
        args.resume is None and cfg.get('resume') and not cfg.get('load_from')
    ):
        # Nothing to resume yet: start from load_from, which an energy model
        # on a frozen detector cannot do without.
        with checks.exit_with_message():
            latest = latest_checkpoint(cfg.work_dir)
        cfg.resume = latest is not None
        cfg.load_from = latest or cfg.get('load_from')
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    if (
        trains_energy_alone(cfg)
        and not cfg.get('resume')
        and not cfg.get('load_from')
        and not cfg.model.get('detector', {}).get('init_cfg')
    ):
        raise SystemExit(
            'the detector is frozen and there is no checkpoint to take it '
            'from: set load_from in the config or with --cfg-options '
            'load_from=CHECKPOINT'
        )
    make_resumable(cfg)
    fit_at_the_end(cfg)
    measure_noise(cfg)
    return cfg


def build_runner(cfg: Config, verbose: bool = False) -> Runner:
    """The runner, if what it needs is there and fits together."""
    with checks.exit_with_message():
        checks.require_registered(cfg)
        if cfg.get('resume'):
            checks.require_resumable(cfg.load_from)
        elif cfg.get('load_from'):
            load_checkpoint_file(cfg.load_from)  # refuses what is none
        removed = []
        if trains_energy_alone(cfg) and not cfg.get('keep_crops'):
            removed = remove_crops(cfg)
        data_checks.require_files(
            cfg, ['train', 'val'] if cfg.get('val_cfg') else ['train']
        )
        with data_checks.naming_bad_annotations(cfg):
            aside = keep_images_aside(cfg)
        runner = screen.build_runner(cfg, verbose)
        if cfg.get('load_from') and trains_energy_alone(cfg):
            checks.require_weights(runner.model, cfg.load_from, 'optional')
        with data_checks.naming_bad_annotations(cfg):
            data_checks.require_classes_of_data(runner, 'train')
            if cfg.get('val_cfg'):
                data_checks.require_classes_of_data(runner, 'val')
    if aside:
        runner.logger.info(aside)
    if removed:
        runner.logger.info(
            f'Taken out of the training pipeline: {", ".join(removed)}. The '
            'detector is frozen, and boxes that a crop has cut teach the '
            'energy model wrong ends. keep_crops=True keeps these steps.'
        )
    return runner


def main() -> None:
    args = parse_args()
    with screen.few_lines(args.verbose):
        cfg = build_config(args)
        join_processes(cfg)
        build_runner(cfg, args.verbose).train()


if __name__ == '__main__':
    main()
