"""Pictures of boxes before and after refinement."""

from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

BEFORE_COLOUR = (255, 140, 0)
AFTER_COLOUR = (0, 230, 80)
# Pixels of the longer side. Small images are enlarged to about the first
# number, so that a shift by one pixel can be seen; images larger than the
# second are reduced to it.
MIN_PICTURE_SIZE = 640
MAX_PICTURE_SIZE = 1600


def draw_refinement(
    image: np.ndarray,
    instances: InstanceData,
    classes: Sequence[str],
    score_thr: float = 0.3,
    compare: bool = True,
    colour: tuple[int, int, int] = AFTER_COLOUR,
) -> np.ndarray:
    """Draw boxes after refinement (solid, green) and before (dashed, orange).

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: ``bboxes``, ``scores``, ``labels`` and, if there was an
            ascent, ``initial_bboxes``, in the image's pixels. Bands around
            the sides show ``box_std`` if it is known; ``masks`` (K, H, W) are
            tinted.
        classes: Names of the labels.
        score_thr: Class score from which a box is drawn.
        compare: Whether to draw ``initial_bboxes``.
        colour: RGB of ``bboxes``.

    Returns:
        The picture (H', W', 3), uint8 RGB.
    """
    shown = instances[instances.scores >= score_thr].cpu()
    shown = shown[shown.scores.argsort()]  # the highest score on top
    if 'masks' in shown and len(shown) > 0:
        image = _tinted(image, np.asarray(shown.masks).any(0))
    picture, zoom = zoomed(image)
    visualizer = Visualizer(image=picture)
    # Lines and letters grow with the picture.
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
            bands = side_bands(zoom * shown.bboxes, zoom * shown.box_std)
            _draw_bands(visualizer, bands)
        visualizer.draw_bboxes(
            zoom * shown.bboxes,
            edge_colors=colour,
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
    return visualizer.get_image()


def side_bands(corners: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Bands of one standard deviation to either side of each side of boxes.

    Args:
        corners: (K, 4) boxes.
        std: (K, 4) of x1, y1, x2, y2; a box with an unknown (NaN) or infinite
            one gets no bands.

    Returns:
        (4 K', 4) corners of the bands, for K' boxes with known deviations.
    """
    known = std.isfinite().all(1)
    corners, std = corners[known], std[known]
    bands = corners.repeat(4, 1, 1)  # (4, K', 4), by side
    for side, band in enumerate(bands):
        axis = side % 2  # 0 for x, 1 for y
        band[:, axis] = corners[:, side] - std[:, side]
        band[:, axis + 2] = corners[:, side] + std[:, side]
    return bands.flatten(0, 1)


def _draw_bands(visualizer: Visualizer, bands: torch.Tensor) -> None:
    limit = bands.new_tensor([visualizer.width, visualizer.height] * 2)
    if len(bands) > 0:
        visualizer.draw_bboxes(
            bands.clamp(min=0).minimum(limit),
            edge_colors=AFTER_COLOUR,
            face_colors=AFTER_COLOUR,
            alpha=0.25,
            line_widths=1,
        )


def zoomed(image: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """The image in the picture's size, and the factor on (K, 4) corners."""
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
