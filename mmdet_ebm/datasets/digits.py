"""A generated detection set: scikit-learn's handwritten digits on clutter.

A box is the extent of the pixels that were drawn, so boxes are exact, unlike
in any annotated set. Each split has its own glyphs.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..files import write_text

CLASSES = tuple(str(digit) for digit in range(10))
# Edges are soft; a pixel of at least this alpha is part of a digit.
VISIBLE_ALPHA = 0.3


@dataclass(frozen=True)
class DigitsConfig:
    """Settings of a generated set. Equal ones give the same files.

    Attributes:
        num_images: Images of each split.
        image_size: Width and height of an image, in pixels.
        digits_per_image: Smallest and largest number of digits in an image.
        digit_size: Smallest and largest height of a glyph's 8x8 cell, pixels.
        annotation_noise: Standard deviations, in the relative box space
            (centre shift over size, log size). For each, a noisy copy of the
            training annotations is written, besides the exact ones.
        seed: Seed of all random draws.
    """

    num_images: dict[str, int] = field(
        default_factory=lambda: dict(train=800, val=150, test=300)
    )
    image_size: tuple[int, int] = (160, 160)
    digits_per_image: tuple[int, int] = (2, 7)
    digit_size: tuple[int, int] = (24, 72)
    annotation_noise: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if set(self.num_images) != {'train', 'val', 'test'}:
            raise ValueError(
                'num_images must have the keys train, val and '
                f'test, got {sorted(self.num_images)}'
            )
        if min(self.num_images.values()) < 1:
            raise ValueError(
                f'every split needs an image, got {self.num_images}'
            )
        if self.digit_size[1] > min(self.image_size):
            raise ValueError(
                f'digit_size {self.digit_size} exceeds the image size '
                f'{self.image_size}'
            )
        if any(sigma <= 0 for sigma in self.annotation_noise):
            raise ValueError(
                'annotation_noise must be positive, got '
                f'{self.annotation_noise}'
            )


def generate_digits(
    out_dir: str | Path, config: DigitsConfig = DigitsConfig()
) -> Path:
    """Write the set in COCO format, unless the folder already holds it.

    Args:
        out_dir: Receives ``images/*.png``, ``annotations/{split}.json`` and,
            for each noise level s, ``annotations/train_noise-{s}.json``.
        config: What to generate.

    Returns:
        ``out_dir``.
    """
    out_dir = Path(out_dir)
    stamp = out_dir / 'config.json'
    wanted = json.dumps(asdict(config), indent=2)
    if stamp.exists() and stamp.read_text(errors='replace') == wanted:
        return out_dir
    (out_dir / 'images').mkdir(parents=True, exist_ok=True)
    (out_dir / 'annotations').mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)  # until all files are there

    for split_id, (split, glyphs) in enumerate(_split_glyphs().items()):
        rng = np.random.default_rng([config.seed, split_id])
        images, annotations = [], []
        numbers = range(config.num_images[split])
        for image_id in tqdm(numbers, f'digits {split}', disable=None):
            pixels, boxes, labels = _draw_image(rng, glyphs, config)
            name = f'{split}_{image_id:05d}.png'
            path = out_dir / 'images' / name
            if not cv2.imwrite(str(path), pixels):
                raise OSError(f'cannot write {path}')
            width, height = config.image_size
            images.append(
                dict(id=image_id, file_name=name, width=width, height=height)
            )
            annotations += [
                _annotation(len(annotations) + i, image_id, box, label)
                for i, (box, label) in enumerate(zip(boxes, labels))
            ]
        _write_coco(out_dir, split, images, annotations)
        if split == 'train':
            for level, sigma in enumerate(config.annotation_noise):
                noise_rng = np.random.default_rng([config.seed, 1000 + level])
                _write_coco(
                    out_dir,
                    f'train_noise-{sigma:g}',
                    images,
                    _noisy(annotations, sigma, noise_rng),
                )
    write_text(stamp, wanted)
    return out_dir


def _split_glyphs() -> dict[str, list[tuple[np.ndarray, int]]]:
    """The 1797 glyphs (8, 8) in [0, 1] with labels; splits share none."""
    from sklearn.datasets import load_digits

    data = load_digits()
    glyphs = [
        (image / 16.0, int(label))
        for image, label in zip(data.images, data.target)
    ]
    return dict(train=glyphs[:1100], val=glyphs[1100:1400], test=glyphs[1400:])


def _draw_image(
    rng: np.random.Generator,
    glyphs: list[tuple[np.ndarray, int]],
    config: DigitsConfig,
) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """One image (H, W, 3) uint8 with its K boxes (4,) xyxy and labels."""
    canvas = _background(rng, config.image_size)
    height, width = canvas.shape[:2]
    boxes, labels = [], []
    low, high = config.digits_per_image
    for _ in range(rng.integers(low, high + 1)):
        glyph, label = glyphs[rng.integers(len(glyphs))]
        alpha = _render_glyph(rng, glyph, config.digit_size)
        rows = np.flatnonzero((alpha >= VISIBLE_ALPHA).any(1))
        cols = np.flatnonzero((alpha >= VISIBLE_ALPHA).any(0))
        # Only the visible part counts, so a digit may touch the border.
        alpha = alpha[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        h, w = alpha.shape
        if h > height or w > width:
            continue
        for _ in range(20):
            x = int(rng.integers(0, width - w + 1))
            y = int(rng.integers(0, height - h + 1))
            box = np.array([x, y, x + w, y + h])
            if all(_overlap(box, other) < 0.1 for other in boxes):
                break
        else:
            continue  # no free place: the image gets one digit fewer
        colour = rng.uniform(0, 255, 3)
        patch = canvas[y : y + h, x : x + w]
        # Move the colour away from the background, so the digit is visible.
        contrast = colour - patch.mean((0, 1))
        norm = np.linalg.norm(contrast)
        if norm < 70:
            colour = colour + contrast / max(norm, 1e-6) * (70 - norm)
        colour = np.clip(colour + rng.normal(0, 12, (h, w, 1)), 0, 255)
        patch += alpha[..., None] * (colour - patch)
        boxes.append(box)
        labels.append(label)
    canvas += rng.normal(0, 6, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), boxes, labels


def _render_glyph(
    rng: np.random.Generator,
    glyph: np.ndarray,
    digit_size: tuple[int, int],
) -> np.ndarray:
    """The glyph's alpha (h, w) in [0, 1], stretched and slightly sheared."""
    height = rng.uniform(*digit_size)
    width = height * rng.uniform(0.7, 1.2)
    shear = rng.uniform(-0.25, 0.25)
    sx, sy = width / 8, height / 8
    glyph = np.pad(glyph, 1)  # strokes at the cell's edge fade out too
    lean = abs(shear) * sy * 10
    out_w, out_h = int(np.ceil(sx * 10 + lean)), int(np.ceil(sy * 10))
    matrix = np.array(
        [[sx, shear * sy, lean if shear < 0 else 0.0], [0.0, sy, 0.0]]
    )
    alpha = cv2.warpAffine(
        glyph, matrix, (out_w, out_h), flags=cv2.INTER_CUBIC
    )
    # A steep ramp: strokes are solid and their edges one or two pixels wide.
    return np.clip((alpha - 0.4) / 0.25, 0, 1)


def _background(
    rng: np.random.Generator, image_size: tuple[int, int]
) -> np.ndarray:
    """(H, W, 3) coloured noise of several scales, lines and ellipses."""
    width, height = image_size
    canvas = np.full((height, width, 3), 1.0) * rng.uniform(40, 215, 3)
    for cells, strength in ((3, 30), (12, 18), (48, 10)):
        noise = rng.normal(0, strength, (cells, cells, 1))
        noise = noise + rng.normal(0, 0.4 * strength, (cells, cells, 3))
        canvas += cv2.resize(noise, image_size, interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(3, 9)):
        colour = rng.uniform(0, 255, 3).tolist()
        start, end = rng.integers(0, [width, height], (2, 2)).tolist()
        thickness = int(rng.integers(1, 4))
        if rng.random() < 0.5:
            cv2.line(canvas, start, end, colour, thickness, cv2.LINE_AA)
        else:
            axes = rng.integers(4, 30, 2).tolist()
            angle = float(rng.uniform(0, 180))
            where = start, axes, angle, 0, 360
            cv2.ellipse(canvas, *where, colour, thickness, cv2.LINE_AA)
    return canvas


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection of two xyxy boxes over the smaller one's area."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    smaller = min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2]))
    return float(np.prod(np.clip(sides, 0, None)) / smaller)


def _annotation(
    ann_id: int, image_id: int, box: np.ndarray, label: int
) -> dict:
    x1, y1, x2, y2 = (float(v) for v in box)
    return dict(
        id=ann_id + 1,
        image_id=image_id,
        category_id=label + 1,
        bbox=[x1, y1, x2 - x1, y2 - y1],
        area=(x2 - x1) * (y2 - y1),
        iscrowd=0,
    )


def _noisy(
    annotations: list[dict], sigma: float, rng: np.random.Generator
) -> list[dict]:
    """The annotations with Gaussian noise in the relative box space."""
    boxes = np.array([annotation['bbox'] for annotation in annotations])
    shift, log_size = np.hsplit(rng.normal(0, sigma, boxes.shape), 2)
    corner, size = np.hsplit(boxes, 2)
    new_size = size * np.exp(log_size)
    new_corner = corner + size / 2 + shift * size - new_size / 2
    noisy = np.hstack([new_corner, new_size]).tolist()
    return [
        dict(annotation, bbox=box, area=box[2] * box[3])
        for annotation, box in zip(annotations, noisy)
    ]


def _write_coco(
    out_dir: Path, name: str, images: list[dict], annotations: list[dict]
) -> None:
    categories = [dict(id=i + 1, name=c) for i, c in enumerate(CLASSES)]
    path = out_dir / 'annotations' / f'{name}.json'
    path.write_text(
        json.dumps(
            dict(images=images, annotations=annotations, categories=categories)
        )
    )
