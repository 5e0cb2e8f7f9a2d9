"""Detect and refine on images, folders, patterns and videos.

Writes into OUT_DIR, for an image x/y.jpg below what the inputs have in common:

  preds/x/y.jpg.json  labels, scores, bboxes, logdensities, initial_bboxes
  vis/x/y.jpg.jpg     the picture (vis/clip.mp4.mp4 of a video clip.mp4)
  index.html          all pictures on a page
  predictions.json    all of them in COCO's form
  summary.json        how many are done, and which were skipped and why

The same command continues where it was stopped: what is finished and has not
changed is not computed again. If the config or the checkpoint is another one,
it refuses; if only the threshold or --compare is, pictures are drawn anew.

exit status: 0 all done; 1 nothing was run, or the disk was full (the message
says why); 2 wrong arguments; 3 some inputs were skipped, the others are done;
130 interrupted.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split


from mmdet_ebm.apis import EnergyDetInferencer
from mmdet_ebm.apis.checks import exit_with_message
from mmdet_ebm.apis.results_folder import write_file
from mmdet_ebm.engine import screen
from mmdet_ebm.engine.config_options import add_model_arguments


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument(
        'inputs',
        nargs='+',
        help='images, folders, videos and quoted patterns ("data/**/*.png")',
    )
    parser.add_argument(
        '--out-dir',
        type=Path,
        default=Path('outputs'),
        help='folder for results (default: outputs)',
    )
    parser.add_argument(
        '--recursive', action='store_true', help='look into subfolders'
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        help='images at a time, at most; results do not '
        'depend on it (default: 1)',
    )
    parser.add_argument(
        '--pred-score-thr',
        type=float,
        default=0.3,
        help='draw boxes from this score on; the files hold '
        'all (default: 0.3)',
    )
    parser.add_argument(
        '--compare',
        action='store_true',
        help='draw the boxes before the refinement as well, dashed',
    )
    parser.add_argument(
        '--uncertainty',
        action='store_true',
        help='tell how sure the boxes are: standard '
        'deviations of the sides, in the files and as bands '
        'in the pictures (docs/uncertainty.md)',
    )
    parser.add_argument(
        '--no-save-vis', action='store_true', help='write no pictures'
    )
    parser.add_argument(
        '--no-save-pred',
        action='store_true',
        help='write no predictions; the next run cannot continue then',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='drop what an earlier run left in OUT_DIR',
    )
    parser.add_argument(
        '--verbose', action='store_true', help="show mmengine's messages, too"
    )
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f'--batch-size must be at least 1, got {args.batch_size}')
    return args


def options(args: argparse.Namespace) -> dict:
    """Changes to the config."""
    changes = dict(args.cfg_options or {})
    if args.uncertainty:
        changes['model.refinement.uncertainty'] = True
    return changes


def main() -> int:
    args = parse_args()
    try:
        with screen.few_lines(args.verbose), exit_with_message():
            inferencer = EnergyDetInferencer(
                args.config, args.checkpoint, args.device, options(args)
            )
            for _ in inferencer.stream(
                args.inputs,
                batch_size=args.batch_size,
                no_save_vis=args.no_save_vis,
                pred_score_thr=args.pred_score_thr,
                no_save_pred=args.no_save_pred,
                out_dir=args.out_dir,
                recursive=args.recursive,
                compare=args.compare,
                overwrite=args.overwrite,
            ):
                pass
            summary = inferencer.summary
            write_file(
                args.out_dir / 'summary.json',
                json.dumps(dataclasses.asdict(summary), indent=1),
            )
    except KeyboardInterrupt:
        print('interrupted; the same command continues', file=sys.stderr)
        return 130
    print(f'{summary}\nresults in {args.out_dir}')
    if not args.no_save_vis:
        print(f'pictures: {args.out_dir / "index.html"}')
    return 3 if summary.skipped else 0


if __name__ == '__main__':
    sys.exit(main())
