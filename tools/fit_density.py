"""Fit how much a checkpoint's energy model and its detector are trusted.

Training does this by itself, on the val split or on images that it keeps
aside. This tool does it for a checkpoint without it, or again on other images.
The fitted numbers go into the new checkpoint and are printed.

A checkpoint of the plain detector will do as well: then no energy model is
asked, and boxes and scores follow the boxes that NMS throws away.

  python tools/fit_density.py CONFIG CHECKPOINT --out fitted.pth
"""

import argparse
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split
import torch
from boltons.fileutils import atomic_save
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmdet_ebm.apis import build_model, checks, data_checks
from mmdet_ebm.core import FixedBoxDensity
from mmdet_ebm.engine.config_options import add_model_arguments
from mmdet_ebm.engine.progress_hook import PassProgress
from mmdet_ebm.evaluation.placed_quality import fit_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument('--out', required=True, help='checkpoint to write')
    parser.add_argument(
        '--split',
        choices=['val', 'test'],
        default='val',
        help='held-out images, seen neither by the detector nor by the '
        'energy model (default: val)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with checks.exit_with_message():
        cfg = Config.fromfile(args.config)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        checkpoint = checks.load_checkpoint_file(args.checkpoint)
        has_f = checks.holds_energy_model(checkpoint)
        model = build_model(
            cfg,
            args.checkpoint,
            args.device,
            energy='required' if has_f else 'optional',
            loaded=checkpoint,
        )
        checks.require_energy_model(model)
        density = model.energy_model.density
        if isinstance(density, FixedBoxDensity):
            raise ValueError(
                'the numbers of the density are in the config '
                '(model.energy_model.density); leave it out to fit them'
            )
        dataloader = cfg.get(f'{args.split}_dataloader')
        if dataloader is None:
            raise ValueError(
                f'the config has no {args.split}_dataloader, so there are no '
                'images to fit on. Name the other split (--split), or add one'
            )
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        with data_checks.naming_bad_annotations(cfg):
            loader = Runner.build_dataloader(dataloader)
        if not has_f:
            print('there are no weights of an energy model: f is not asked')
        print(fit_model(model, PassProgress(loader, 'fit'), has_f))
        state = {key: value.cpu() for key, value in model.state_dict().items()}
        if has_f:
            checkpoint['state_dict'] = state
        else:  # of another model than the plain detector's
            checkpoint = dict(
                meta=dict(dataset_meta=checks.dataset_meta(checkpoint)),
                state_dict=checks.without_energy_weights(state),
            )
        with atomic_save(args.out, overwrite_part=True) as file:
            torch.save(checkpoint, file)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
