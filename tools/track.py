"""Follow one target through a video.

  python tools/track.py CONFIG CHECKPOINT VIDEO --init 120,80,40,60 --out run

CONFIG is that of an EnergySOT. VIDEO is a file, or a folder of frames. --init
is the target's box in the first frame: left, top, width and height in pixels,
counted from 0. The folder run receives boxes.json (corners and confidence of
each frame), boxes.txt (in OTB's form, counted from 1) and video.mp4 with the
boxes drawn in.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

import cv2
import numpy as np
from tqdm import tqdm

from mmdet_ebm.apis import checks
from mmdet_ebm.apis.tracking import build_tracking_model
from mmdet_ebm.decoding import UnreadableInput, read_frames
from mmdet_ebm.engine.config_options import add_model_arguments
from mmdet_ebm.models.trackers import EnergySOT
from mmdet_ebm.tracking import read_frame, write_boxes

COLOUR = (60, 200, 60)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, example='model.learning_rate=0.05')
    parser.add_argument('video', help='video file or folder of frames')
    parser.add_argument('--init', required=True, help='x,y,w,h')
    parser.add_argument('--out', required=True, help='folder to write')
    return parser.parse_args()


def frames_of(video: Path) -> Iterator[np.ndarray]:
    """The frames of a file or folder that can be read."""
    if video.is_dir():
        for path in sorted(video.iterdir()):
            frame = read_frame(path)
            if frame is None:
                print(f'left out: {path}: no image')
            else:
                yield frame
        return
    found = False
    try:
        for frame in read_frames(video):
            found = True
            yield frame
    except UnreadableInput as error:
        if not found:
            raise ValueError(f'{video}: {error}') from error
        print(f'{video}: {error}')


def parse_box(text: str) -> np.ndarray:
    """(4,) corners from x,y,w,h."""
    try:
        x, y, w, h = map(float, text.split(','))
    except ValueError:
        x = y = w = h = 0.0
    if not (w > 0 and h > 0):
        raise ValueError(f'--init must be x,y,w,h with an area, got {text!r}')
    return np.array([x, y, x + w, y + h])


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    boxes, confidences, writer = [], [], None
    with checks.exit_with_message():
        box = parse_box(args.init)
        model = build_tracking_model(
            args.config, args.checkpoint, args.device, args.cfg_options
        )
        if not isinstance(model, EnergySOT):
            raise ValueError(
                'expected the config of an EnergySOT, got that of a '
                f'{type(model).__name__}'
            )
        out.mkdir(parents=True, exist_ok=True)
        for frame in tqdm(frames_of(Path(args.video)), 'frames'):
            confidence = 1.0
            if writer is None:
                height, width = frame.shape[:2]
                writer = cv2.VideoWriter(
                    str(out / 'video.mp4'),
                    cv2.VideoWriter_fourcc(*'mp4v'),
                    25,
                    (width, height),
                )
                model.init(frame, box)
            else:
                found = model.track(frame)
                box, confidence = found.box, found.confidence
            boxes.append(box)
            confidences.append(confidence)
            x1, y1, x2, y2 = box.round().astype(int).tolist()
            drawn = cv2.rectangle(frame.copy(), (x1, y1), (x2, y2), COLOUR, 2)
            cv2.putText(
                drawn,
                f'{confidence:.2f}',
                (x1, max(y1 - 4, 12)),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.5,
                COLOUR,
                1,
            )
            writer.write(drawn)
        if writer is None:
            raise ValueError(f'{args.video} has no frame that can be read')
    writer.release()
    write_boxes(out / 'boxes.txt', np.array(boxes), 1)
    rows = [
        dict(box=[round(v, 2) for v in box.tolist()], confidence=confidence)
        for box, confidence in zip(boxes, confidences)
    ]
    (out / 'boxes.json').write_text(json.dumps(rows, indent=1))
    print(f'{len(boxes)} frames in {out}')


if __name__ == '__main__':
    main()
