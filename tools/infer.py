"""Refine the detections on an image, several images or folders.

Writes OUT_DIR/predictions.json (COCO form: images, annotations with scores
and log-densities, categories) and OUT_DIR/pictures, with boxes before the
refinement dashed and after it solid. An image that cannot be read is reported
and skipped; the exit status is 1 if none could be.
"""

import argparse
import sys

from mmengine.config import DictAction

from mmdet_ebm.apis import build_model, infer_folder, list_images


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='+', help='images and folders')
    parser.add_argument('--out-dir', default='outputs',
                        help='folder for results (default: outputs)')
    parser.add_argument('--recursive', action='store_true',
                        help='look into subfolders')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='draw boxes from this score on (default: 0.3)')
    parser.add_argument('--no-pictures', action='store_true',
                        help='write predictions.json only')
    parser.add_argument('--device',
                        help='e.g. cuda:0 or cpu (default: a GPU if any)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction,
        help='override config entries, e.g. '
        'model.roi_head.refinement.ascent=False')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    try:
        paths = list_images(args.inputs, args.recursive)
        model = build_model(args.config, args.checkpoint, args.device,
                            args.cfg_options)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'error: {error}')
    report = infer_folder(model, paths, args.out_dir, args.score_thr,
                          draw=not args.no_pictures)
    done = len(report.results['images'])
    print(f'{done} of {len(paths)} images done, results in {args.out_dir}')
    for path, reason in report.skipped.items():
        print(f'skipped {path}: {reason}')
    return 0 if done else 1


if __name__ == '__main__':
    sys.exit(main())
