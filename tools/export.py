"""Write the results of tools/infer.py in the form of another tool.

  csv, parquet   a row for each detection, for spreadsheets and data frames
  label-studio   tasks with predictions, and OUT.interface.xml
  cvat           annotations, CVAT for images 1.1, and OUT.labels.json
  fiftyone       a COCO data set for FiftyOne's importer

docs/exports.md says what to type in each tool. Nothing is computed again.

exit status: 0 done; 1 nothing was written (the message says why); 2 wrong
arguments.
"""

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

from mmdet_ebm.apis import exports, preannotations
from mmdet_ebm.apis.checks import exit_with_message
from mmdet_ebm.apis.results_folder import SavedResults, write_file

WRITERS = {
    'csv': exports.write_csv,
    'parquet': exports.write_parquet,
    'label-studio': preannotations.write_label_studio,
    'cvat': preannotations.write_cvat,
    'fiftyone': exports.write_fiftyone,
}
# These know images and no arrays or frames of a video.
FILES_ONLY = ('label-studio', 'cvat', 'fiftyone')
# What the tool must know before: suffix of a file beside the other, its text,
# and what it is for.
SETUPS = {
    'label-studio': (
        '.interface.xml',
        preannotations.label_studio_interface,
        'labelling interface of the project',
    ),
    'cvat': (
        '.labels.json',
        preannotations.cvat_labels,
        'labels of the task',
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('results', help='folder that tools/infer.py wrote')
    parser.add_argument('--format', required=True, choices=WRITERS)
    parser.add_argument(
        '--out', required=True, type=Path, help='file to write'
    )
    parser.add_argument(
        '--pred-score-thr',
        type=float,
        default=0.0,
        help='leave out detections with a smaller score (default: 0)',
    )
    parser.add_argument(
        '--image-prefix',
        help='label-studio: what comes before the name of an image in its '
        'address, e.g. "/data/local-files/?d=photos/"',
    )
    args = parser.parse_args()
    if (args.format == 'label-studio') != (args.image_prefix is not None):
        parser.error('--format label-studio and --image-prefix go together')
    return args


def main() -> int:
    args = parse_args()
    write = WRITERS[args.format]
    if args.format == 'label-studio':
        write = partial(write, image_prefix=args.image_prefix)
    counts = dict(images=0, detections=0, left_out=0)

    def selected(results):
        for image in results:
            if args.format in FILES_ONLY and not image.is_file:
                counts['left_out'] += 1
                continue
            chosen = exports.select(image.prediction, args.pred_score_thr)
            counts['images'] += 1
            counts['detections'] += len(chosen['labels'])
            yield dataclasses.replace(image, prediction=chosen)

    try:
        with exit_with_message():
            results = SavedResults(args.results)
            write(selected(results), results.classes, args.out)
    except ModuleNotFoundError as error:
        raise SystemExit(f'error: {error}') from error
    print(
        f'{counts["images"]} images and frames, '
        f'detections: {counts["detections"]}, in {args.out}'
    )
    if counts['left_out']:
        print(
            f'left out: {counts["left_out"]} frames of videos and arrays, '
            f'which are no image files for {args.format}'
        )
    if args.format in SETUPS:
        suffix, text, purpose = SETUPS[args.format]
        beside = args.out.with_name(args.out.name + suffix)
        write_file(beside, text(results.classes))
        print(f'{purpose} in {beside}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
