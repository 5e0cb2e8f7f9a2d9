"""Fit how much an energy model and a tracker are trusted, on held-out tracks.

  python tools/fit_tracker.py CONFIG CHECKPOINT --data data/tracking/train \
      --boxes boxes/CSRT --out csrt.json

The tracks are those named held_out in the config, or all of the folder. The
numbers go into a file that tools/refine_tracks.py reads.
"""

import argparse

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

from mmengine.config import Config

from mmdet_ebm.apis import checks
from mmdet_ebm.apis.tracking import (
    add_data_arguments,
    build_tracking_model,
    read_tracker,
)
from mmdet_ebm.engine.config_options import add_model_arguments
from mmdet_ebm.evaluation import fit_tracker
from mmdet_ebm.files import write_json
from mmdet_ebm.tracking import find_tracks


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument(
        '--boxes',
        required=True,
        help="folder with the tracker's boxes, NAME.txt for each track, lines "
        'of x, y, w, h counted from 1',
    )
    parser.add_argument('--out', required=True, help='JSON file to write')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with checks.exit_with_message():
        cfg = Config.fromfile(args.config)
        model = build_tracking_model(
            cfg, args.checkpoint, args.device, args.cfg_options
        )
        tracks = find_tracks(args.data, args.layout, cfg.get('held_out'))
        boxes = read_tracker(args.boxes, tracks)
        fit = fit_tracker(model, tracks, boxes)
    write_json(args.out, fit.numbers)
    print(fit)


if __name__ == '__main__':
    main()
