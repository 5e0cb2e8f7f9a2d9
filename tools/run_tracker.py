"""Run one of OpenCV's trackers over sequences and write its boxes.

  python tools/run_tracker.py CSRT --data data/tracking/test --out boxes/CSRT

It needs opencv-contrib-python, and neither torch nor mmdet: it can run in an
environment of its own. NAME.txt of each sequence is in OTB's form, counted
from 1, as tools/fit_tracker.py and tools/refine_tracks.py read it. Sequences
whose file is there already are left alone.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from mmdet_ebm.tracking import (
    LAYOUTS,
    OPENCV_TRACKERS,
    OpenCVTracker,
    find_tracks,
    write_boxes,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('tracker', choices=list(OPENCV_TRACKERS))
    parser.add_argument('--data', required=True, help='folder of sequences')
    parser.add_argument('--layout', choices=list(LAYOUTS), default='otb')
    parser.add_argument('--names', nargs='+', help='only these sequences')
    parser.add_argument(
        '--weights', default='.', help="folder of the tracker's networks"
    )
    parser.add_argument('--out', required=True, help='folder to write')
    return parser.parse_args()


def run(tracker: OpenCVTracker, args: argparse.Namespace) -> None:
    for track in find_tracks(args.data, args.layout, args.names):
        path = Path(args.out) / f'{track.name}.txt'
        if path.exists():
            continue
        boxes: np.ndarray = tracker.run(track)
        write_boxes(path, boxes, 1)
        print(f'{track.name}: {len(boxes)} frames')


def main() -> None:
    args = parse_args()
    cv2.setNumThreads(1)  # the same boxes on every machine
    try:
        run(OpenCVTracker(args.tracker, args.weights), args)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
