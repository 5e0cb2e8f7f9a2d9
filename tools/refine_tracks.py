"""Refine the boxes of any tracker.

  python tools/refine_tracks.py CONFIG CHECKPOINT --data data/tracking/test \
      --boxes boxes/CSRT --density csrt.json --out refined/CSRT
  python tools/refine_tracks.py CONFIG CHECKPOINT --data data/tracking/test \
      --tracker NanoTrack --weights weights --out refined/NanoTrack

Boxes come from files, or from one of OpenCV's trackers, which runs beside and
never sees a refined box. NAME.txt of each sequence is written in OTB's form,
counted from 1, and figures.json with the figures before and after.
"""

import argparse
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

import numpy as np
from tqdm import tqdm

from mmdet_ebm.apis import checks
from mmdet_ebm.apis.tracking import (
    add_data_arguments,
    build_tracking_model,
    read_density,
    read_tracker,
    write_comparison,
)
from mmdet_ebm.engine.config_options import add_model_arguments
from mmdet_ebm.models.trackers import TrackRefiner
from mmdet_ebm.tracking import (
    OPENCV_TRACKERS,
    OpenCVTracker,
    Track,
    box_overlaps,
    evaluate_boxes,
    find_tracks,
    read_frame,
    write_boxes,
)
from mmdet_ebm.visualization import ContactSheet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument('--names', nargs='+', help='only these sequences')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        '--boxes',
        help="folder with the tracker's boxes, NAME.txt for each sequence, "
        'lines of x, y, w, h counted from 1',
    )
    source.add_argument(
        '--tracker',
        choices=list(OPENCV_TRACKERS),
        help='one of OpenCV; needs opencv-contrib-python',
    )
    parser.add_argument(
        '--weights', default='.', help="folder of the tracker's networks"
    )
    parser.add_argument(
        '--density',
        help='JSON file of tools/fit_tracker.py; by default the numbers of '
        'the checkpoint, or cautious ones',
    )
    parser.add_argument('--out', required=True, help='folder to write')
    parser.add_argument(
        '--uncertainty',
        action='store_true',
        help='also write NAME_std.txt: standard deviations of the sides',
    )
    parser.add_argument(
        '--pictures',
        action='store_true',
        help='also write NAME.jpg: some frames with the boxes',
    )
    return parser.parse_args()


def contact_sheet(
    track: Track, before: np.ndarray, after: np.ndarray, number: int = 8
) -> ContactSheet:
    """Some frames of a sequence, with the boxes before and after.

    Args:
        track: Its frames and true boxes.
        before: (T, 4) the tracker's.
        after: (T, 4) refined.
        number: Frames to show, evenly spread.
    """
    last = len(track.frames) - 1
    shown = np.unique(np.linspace(min(1, last), last, number).round())
    shown = [
        (n, frame[..., ::-1])
        for n in shown.astype(int)
        if (frame := read_frame(track.frames[n])) is not None
    ]
    rows = [n for n, _ in shown]
    boxes = dict(
        before=before[rows], after=after[rows], truth=track.boxes[rows]
    )
    overlaps = (
        box_overlaps(boxes[kind], boxes['truth'])
        for kind in ('before', 'after')
    )
    titles = [
        f'frame {n}: IoU {old:.2f}, refined {new:.2f}'
        for n, old, new in zip(rows, *overlaps)
    ]
    return ContactSheet([frame for _, frame in shown], titles, **boxes)


def main() -> None:
    args = parse_args()
    with checks.exit_with_message():
        model = build_tracking_model(
            args.config, args.checkpoint, args.device, args.cfg_options
        )
        if args.density:
            numbers = read_density(args.density)
            model.energy_model.density.set_numbers(**numbers)
        tracks = find_tracks(args.data, args.layout, args.names)
        if args.boxes:
            boxes = read_tracker(args.boxes, tracks)
        else:
            tracker = OpenCVTracker(args.tracker, args.weights)
    refiner = TrackRefiner(model, args.uncertainty)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    before, after, seconds = {}, {}, []
    for track in tqdm(tracks, 'sequences'):
        own = boxes[track.name] if args.boxes else tracker.run(track)
        refined = refiner.track(track, own)
        write_boxes(out / f'{track.name}.txt', refined.boxes, 1)
        if args.uncertainty:
            np.savetxt(out / f'{track.name}_std.txt', refined.std, '%.2f', ',')
        if args.pictures:
            sheet = contact_sheet(track, np.asarray(own), refined.boxes)
            sheet.save(out / f'{track.name}.jpg')
        before[track.name] = evaluate_boxes(own, track.boxes)
        after[track.name] = evaluate_boxes(refined.boxes, track.boxes)
        seconds += refined.seconds[1:].tolist()
    milliseconds = 1000 * float(np.median(seconds))
    print(
        write_comparison(
            out / 'figures.json',
            before,
            after,
            milliseconds_per_frame=milliseconds,
            density=str(model.energy_model.density),
        )
    )
    print(f'{milliseconds:.0f} ms a frame, backbone included')


if __name__ == '__main__':
    main()
