"""Pictures: boxes where they belong, nothing drawn below the threshold."""

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData

from mmdet_ebm.visualization import draw_refinement
from mmdet_ebm.visualization.refinement import AFTER_COLOUR


def draw(tmp_path, score, with_initial=True):
    image = np.zeros((100, 160, 3), np.uint8)
    instances = InstanceData(
        bboxes=torch.tensor([[40., 20, 120, 80]]),
        scores=torch.tensor([score]), labels=torch.tensor([0]))
    if with_initial:
        instances.initial_bboxes = torch.tensor([[20., 10, 140, 90]])
    out = tmp_path / 'picture.png'
    draw_refinement(image, instances, ('thing', ), out)
    return cv2.imread(str(out))[..., ::-1].astype(int)


def test_small_images_are_enlarged_and_the_refined_box_is_green(tmp_path):
    picture = draw(tmp_path, 0.9)
    assert abs(picture.shape[1] - 640) < 10
    zoom = picture.shape[1] / 160
    side = picture[int(50 * zoom), int(120 * zoom) - 4:int(120 * zoom) + 5]
    colour = np.array(AFTER_COLOUR) * 0.8  # drawn with alpha 0.8
    assert np.abs(side - colour).sum(1).min() < 60


def test_box_before_is_drawn_only_where_there_was_an_ascent(tmp_path):
    with_before = draw(tmp_path, 0.9)
    without = draw(tmp_path, 0.9, with_initial=False)
    zoom = with_before.shape[1] / 160
    column = slice(int(20 * zoom) - 4, int(20 * zoom) + 5)
    assert with_before[:, column].sum() > without[:, column].sum() == 0


def test_boxes_below_the_threshold_are_left_out(tmp_path):
    assert draw(tmp_path, 0.1).sum() == 0
