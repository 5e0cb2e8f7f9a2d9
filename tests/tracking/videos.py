"""A generated video: a textured square that moves over another texture."""

import cv2
import numpy as np

SIZE = (96, 80)


def moving_square(num_frames=6, seed=0):
    """Frames (T, H, W, 3) uint8 and corners (T, 4)."""
    rng = np.random.default_rng(seed)
    width, height = SIZE

    def texture(w, h, cells):
        noise = rng.integers(0, 255, (cells, cells, 3), np.uint8)
        return cv2.resize(noise, (w, h), interpolation=cv2.INTER_CUBIC)

    background = texture(width, height, 12)
    square = texture(64, 64, 4)
    frames, boxes = [], []
    for t in range(num_frames):
        w, h = 24 + 2 * t, 20 + t
        x, y = 12 + 4 * t, 40 - 3 * t
        frame = background.copy()
        frame[y : y + h, x : x + w] = cv2.resize(square, (w, h))
        frames.append(frame)
        boxes.append([x, y, x + w, y + h])
    return np.array(frames), np.array(boxes, float)


def write_otb(root, name='square', **options):
    """The video in OTB's layout, counted from 1; gives its boxes."""
    frames, boxes = moving_square(**options)
    folder = root / name / 'img'
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        assert cv2.imwrite(str(folder / f'{number:04d}.png'), frame)
    write_lines(root / name / 'groundtruth_rect.txt', boxes, 1)
    return boxes


def write_lines(path, boxes, first_pixel, separator=','):
    """Corners as lines x, y, w, h."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '\n'.join(
            separator.join(
                f'{v:g}'
                for v in (x + first_pixel, y + first_pixel, u - x, v - y)
            )
            for x, y, u, v in boxes
        )
    )
