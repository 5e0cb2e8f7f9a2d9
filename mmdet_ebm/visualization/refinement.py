"""Pictures of boxes before and after refinement."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

BEFORE_COLOUR = (255, 140, 0)
AFTER_COLOUR = (0, 230, 80)
# Small images are enlarged to about the first number of pixels along the
# longer side, so that a refinement by a pixel can be seen; those larger than
# the second are reduced to it.
MIN_PICTURE_SIZE = 640
MAX_PICTURE_SIZE = 1600


def draw_refinement(
    image: str | Path | np.ndarray,
    instances: InstanceData,
    classes: Sequence[str],
    out_file: str | Path | None = None,
    score_thr: float = 0.3,
    compare: bool = True,
) -> np.ndarray:
    """Draw boxes as they are (solid, green) and were (dashed, orange).

    Args:
        image: Path, or (H, W, 3) uint8 RGB.
        instances: ``bboxes``, ``scores``, ``labels`` and, if there was an
            ascent, ``initial_bboxes``, in the image's pixels; around the
            sides, bands of a standard deviation to either side show
            ``box_std`` where it is known; ``masks`` (K, H, W) are tinted.
        classes: Names of the labels.
        out_file: Picture to write, if any.
        score_thr: Class score from which a box is drawn.
        compare: Whether to draw ``initial_bboxes``.

    Returns:
        The picture (H', W', 3), uint8 RGB.
    """
    if not isinstance(image, np.ndarray):
        image = mmcv.imread(str(image), channel_order='rgb')
    shown = instances[instances.scores >= score_thr].cpu()
    shown = shown[shown.scores.argsort()]  # the surest on top
    if 'masks' in shown and len(shown) > 0:
        image = _tinted(image, np.asarray(shown.masks).any(0))
    picture, zoom = _zoomed(image)
    visualizer = Visualizer(image=picture)
    # The same look in whatever size the picture is shown.
    scale = max(1.0, max(picture.shape) / 800)
    if len(shown) > 0:
        if compare and 'initial_bboxes' in shown:
            visualizer.draw_bboxes(
                zoom * shown.initial_bboxes,
                edge_colors=BEFORE_COLOUR,
                line_styles='--',
                line_widths=2 * scale,
            )
        if 'box_std' in shown:
            draw_side_bands(
                visualizer, zoom * shown.bboxes, zoom * shown.box_std
            )
        visualizer.draw_bboxes(
            zoom * shown.bboxes,
            edge_colors=AFTER_COLOUR,
            line_widths=2 * scale,
        )
        texts = [
            f'{classes[label]} {score:.2f}'
            for label, score in zip(shown.labels, shown.scores)
        ]
        visualizer.draw_texts(
            texts,
            (zoom * shown.bboxes)[:, :2],
            font_sizes=10 * scale,
            colors='w',
            bboxes=dict(
                facecolor='black', alpha=0.8, pad=0.5, edgecolor='none'
            ),
        )
    picture = visualizer.get_image()
    if out_file is not None:
        mmcv.imwrite(picture[..., ::-1], str(out_file))
    return picture


def draw_side_bands(
    visualizer: Visualizer, corners: torch.Tensor, std: torch.Tensor
) -> None:
    """Bands of one standard deviation to either side of each side of boxes.

    Args:
        visualizer: With its image.
        corners: (K, 4) in its pixels.
        std: (K, 4) of x1, y1, x2, y2; NaN where unknown, which draws nothing.
    """
    known = std.isfinite().all(1)
    corners, std = corners[known], std[known]
    bands = []
    for side in range(4):
        band, axis = corners.clone(), side % 2  # 0 for x, 1 for y
        band[:, axis] = corners[:, side] - std[:, side]
        band[:, axis + 2] = corners[:, side] + std[:, side]
        bands.append(band)
    bands = torch.cat(bands)
    limit = bands.new_tensor([visualizer.width, visualizer.height] * 2)
    bands = bands.clamp(min=0).minimum(limit)
    if len(bands) > 0:
        visualizer.draw_bboxes(
            bands,
            edge_colors=AFTER_COLOUR,
            face_colors=AFTER_COLOUR,
            alpha=0.25,
            line_widths=1,
        )


def _zoomed(image: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """The image at the picture's size, and the factor on (K, 4) corners."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer > MAX_PICTURE_SIZE:
        zoom, interpolation = MAX_PICTURE_SIZE / longer, 'area'
    else:
        zoom = max(1, round(MIN_PICTURE_SIZE / longer))
        interpolation = 'nearest'
    size = max(1, round(zoom * width)), max(1, round(zoom * height))
    picture = mmcv.imresize(image, size, interpolation=interpolation)
    x, y = size[0] / width, size[1] / height
    return picture, torch.tensor([x, y, x, y])


def _tinted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[mask] = (0.6 * image[mask] + 0.4 * np.array(AFTER_COLOUR)).astype(
        np.uint8
    )
    return image
