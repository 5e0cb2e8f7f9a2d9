"""Pictures of boxes before and after refinement."""

from pathlib import Path
from typing import Sequence, Union

import mmcv
import numpy as np
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

BEFORE_COLOUR = (255, 140, 0)
AFTER_COLOUR = (0, 230, 80)
# Small images are enlarged to this many pixels along the longer side, so that
# a refinement by a pixel can be seen.
MIN_PICTURE_SIZE = 640


def draw_refinement(image: Union[str, Path, np.ndarray],
                    instances: InstanceData,
                    classes: Sequence[str],
                    out_file: Union[str, Path],
                    score_thr: float = 0.3) -> None:
    """Draw boxes where they were (dashed, orange) and are (solid, green).

    Args:
        image: Path, or (H, W, 3) uint8 RGB.
        instances: ``bboxes``, ``scores``, ``labels`` and, if there was an
            ascent, ``initial_bboxes``, in the image's pixels.
        classes: Names of the labels.
        out_file: Picture to write.
        score_thr: Class score from which a box is drawn.
    """
    if not isinstance(image, np.ndarray):
        image = mmcv.imread(str(image), channel_order='rgb')
    zoom = max(1, round(MIN_PICTURE_SIZE / max(image.shape[:2])))
    visualizer = Visualizer(
        image=mmcv.imrescale(image, zoom, interpolation='nearest'))
    shown = instances[instances.scores >= score_thr].cpu()
    if len(shown) > 0:
        if 'initial_bboxes' in shown:
            visualizer.draw_bboxes(
                zoom * shown.initial_bboxes, edge_colors=BEFORE_COLOUR,
                line_styles='--', line_widths=2)
        visualizer.draw_bboxes(zoom * shown.bboxes, edge_colors=AFTER_COLOUR,
                               line_widths=2)
        texts = [f'{classes[label]} {score:.2f}'
                 for label, score in zip(shown.labels, shown.scores)]
        visualizer.draw_texts(
            texts, zoom * shown.bboxes[:, :2], font_sizes=10, colors='w',
            bboxes=dict(facecolor='black', alpha=0.5, pad=0.5,
                        edgecolor='none'))
    mmcv.imwrite(visualizer.get_image()[..., ::-1], str(out_file))
