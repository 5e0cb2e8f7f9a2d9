"""Convert published weights in maskrcnn-benchmark's naming.

Takes the authors' energy-based model (nce+_model_0060000.pth) or the
Detectron-style Faster R-CNN under it, and writes a checkpoint for the config:

  python tools/convert_checkpoint.py nce+_model_0060000.pth nce-plus.pth

Every tensor is used, or dropped for a stated reason. A file that does not fit,
or not all of it, is refused, and nothing is written. docs/published_weights.md
says what a converted model computes.
"""

import argparse
from collections import Counter
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_ebm.apis import checks
from mmdet_ebm.apis.maskrcnn_benchmark import Conversion, convert_checkpoint

CONFIG = (
    Path(__file__).resolve().parent.parent
    / 'configs/published'
    / 'faster-rcnn_r50-caffe_fpn_nce-plus_coco.py'
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', help='the published file')
    parser.add_argument('out', help='file to write')
    parser.add_argument(
        '--config',
        default=str(CONFIG),
        help='config that the weights are for (default: the one in '
        'configs/published)',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace the file to write if it exists',
    )
    args = parser.parse_args()
    if Path(args.out).exists() and not args.overwrite:
        parser.error(f'{args.out} exists; --overwrite replaces it')
    return args


def report(conversion: Conversion) -> str:
    """What became of each tensor, in lines."""
    lines = [
        f'{len(conversion.used)} tensors used, for '
        f'{len(conversion.state_dict)} of the model'
    ]
    lines += [
        f'  {count} {change}'
        for change, count in Counter(conversion.changed.values()).items()
    ]
    lines += [f'{len(conversion.dropped)} entries dropped']
    lines += [
        f'  {name}: {reason}' for name, reason in conversion.dropped.items()
    ]
    lines += [
        'with its energy model'
        if conversion.has_energy
        else 'a detector without an energy model: train one from it '
        '(load_from), or switch the stages of refinement off'
    ]
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    with checks.exit_with_message():
        config = Config.fromfile(args.config)
        init_default_scope('mmdet')
        model = MODELS.build(config.model)
        conversion = convert_checkpoint(args.checkpoint, args.out, model)
    print(report(conversion))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
