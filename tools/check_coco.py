"""Check a COCO 2017 folder before a long run.

Looks for ROOT/annotations/instances_{train,val}2017.json and
ROOT/{train,val}2017/, compares counts and categories with the official ones,
boxes with their images, and decodes image files. Exits with 1 if anything
would stop a training or falsify its figures.
"""

import argparse
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

from mmdet_ebm.datasets.coco_check import check_coco_split


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'root',
        nargs='?',
        default='data/coco',
        type=Path,
        help='folder of COCO (default: data/coco, as in the configs)',
    )
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=['train', 'val'],
        default=['train', 'val'],
        help='what to check (default: both)',
    )
    parser.add_argument(
        '--images',
        default='200',
        metavar='NUMBER|all',
        help='image files of a split to decode, a sample or all, which takes '
        'about as long as an epoch of loading (default: 200)',
    )
    parser.add_argument(
        '--subset',
        action='store_true',
        help='the folder holds a part of COCO: other counts are all right',
    )
    args = parser.parse_args()
    if args.images != 'all' and not args.images.isdigit():
        parser.error(f'--images must be a number or "all", got {args.images}')
    return args


def main() -> None:
    args = parse_args()
    number = None if args.images == 'all' else int(args.images)
    failed = False
    for split in args.splits:
        print(f'== {split}2017')
        report = check_coco_split(args.root, split, number, args.subset)
        for kind, lines in (
            ('ok', report.facts),
            ('warning', report.warnings),
            ('ERROR', report.errors),
        ):
            for line in lines:
                print(f'{kind}: {line}')
        failed |= bool(report.errors)
    print(
        'This folder is not fit for training: see the errors above.'
        if failed
        else 'Fit for training.'
    )
    raise SystemExit(int(failed))


if __name__ == '__main__':
    main()
