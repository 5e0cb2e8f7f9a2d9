"""Frames of a video on one page."""

import cv2
import numpy as np
import pytest

from mmdet_ebm.visualization import ContactSheet


@pytest.mark.parametrize('number, rows', [(1, 1), (4, 1), (5, 2)])
def test_each_frame_has_its_known_boxes(number, rows, tmp_path):
    frames = [np.full((60, 80, 3), 90, np.uint8)] * number
    boxes = np.tile([[10.0, 10, 40, 50]], (number, 1))
    unknown = boxes.copy()
    unknown[0] = np.nan
    titles = [f'frame {n}' for n in range(number)]
    sheet = ContactSheet(frames, titles, after=boxes, truth=unknown)
    axes = sheet.figure.axes
    assert len(axes) == 4 * rows
    assert [len(each.patches) for each in axes[:number]] == [1] + [2] * (
        number - 1
    )
    assert not any(each.images for each in axes[number:])
    sheet.save(tmp_path / 'sheet.jpg')
    assert cv2.imread(str(tmp_path / 'sheet.jpg')).std() > 0
