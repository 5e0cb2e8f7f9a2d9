"""Evaluate a checkpoint, plain or refined, as mmdet's own tool does.

Every stage of the refinement can be switched from the command line, so that
one checkpoint of an energy config gives all comparisons:

  --cfg-options model.refinement.energy_nms=False \\
                model.refinement.ascent=False
"""

import argparse
import os
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmdet_ebm.apis import checks, data_checks
from mmdet_ebm.engine import join_processes, screen
from mmdet_ebm.engine.config_options import ConfigOptions


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='test config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir',
        help="folder for logs and metrics (default: the config's, else "
        'work_dirs/<config name>)',
    )
    parser.add_argument(
        '--out', help='dump the predictions to this .pkl for offline use'
    )
    parser.add_argument('--show', action='store_true', help='show pictures')
    parser.add_argument(
        '--show-dir', help='save pictures in work_dir/timestamp/SHOW_DIR'
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds between shown pictures (default: 2)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        help='override config entries, e.g. '
        'model.refinement.ascent=False key="[a,b]"',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: plain and mirrored images',
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
        help='job launcher (default: none)',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='set by torch.distributed.launch',
    )
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
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
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        add_flip_tta(cfg)
    return cfg


def add_flip_tta(cfg: Config) -> None:
    """Wrap the model so that each image is seen plain and mirrored.

    ``tta_model`` and ``tta_pipeline`` of the config win where they exist.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    keys = (
        'img_id',
        'img_path',
        'ori_shape',
        'img_shape',
        'scale_factor',
        'flip',
        'flip_direction',
    )
    pipeline = cfg.get(
        'tta_pipeline',
        [
            *dataset.pipeline[:-1],
            dict(
                type='TestTimeAug',
                transforms=[
                    [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)],
                    [dict(type='PackDetInputs', meta_keys=keys)],
                ],
            ),
        ],
    )
    tta_model = cfg.get(
        'tta_model',
        dict(
            type='DetTTAModel',
            tta_cfg=dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
            ),
        ),
    )
    dataset.pipeline = pipeline
    cfg.model = dict(tta_model, module=cfg.model)


def build_runner(cfg: Config, verbose: bool = False) -> Runner:
    """The runner, if what it needs is there and fits together."""
    with checks.exit_with_message():
        checks.require_registered(cfg)
        data_checks.require_files(cfg, ['test'])
        runner = screen.build_runner(cfg, verbose)
        checks.require_weights(runner.model, cfg.load_from, 'if asked')
        with data_checks.naming_bad_annotations(cfg):
            data_checks.require_classes_of_data(runner, 'test')
    return runner


def main() -> None:
    args = parse_args()
    with screen.few_lines(args.verbose):
        cfg = build_config(args)
        join_processes(cfg)
        runner = build_runner(cfg, args.verbose)
        if args.out is not None:
            runner.test_evaluator.metrics.append(
                DumpDetResults(out_file_path=args.out)
            )
        runner.test()
    if args.out is not None and is_main_process():
        print(f'predictions: {args.out}')


if __name__ == '__main__':
    main()
