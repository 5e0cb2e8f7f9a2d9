"""Pictures: boxes where they belong, nothing drawn below the threshold."""

import numpy as np
import torch
from mmengine.structures import InstanceData

from mmdet_ebm.visualization import draw_refinement
from mmdet_ebm.visualization.refinement import AFTER_COLOUR


def draw(score, with_initial=True, **options):
    """A picture of one box on black, as int, for differences."""
    image = np.zeros((100, 160, 3), np.uint8)
    instances = InstanceData(
        bboxes=torch.tensor([[40.0, 20, 120, 80]]),
        scores=torch.tensor([score]),
        labels=torch.tensor([0]),
    )
    if with_initial:
        instances.initial_bboxes = torch.tensor([[20.0, 10, 140, 90]])
    picture = draw_refinement(image, instances, ('thing',), **options)
    return picture.astype(int)


def test_small_images_are_enlarged_and_the_refined_box_is_green():
    picture = draw(0.9)
    assert abs(picture.shape[1] - 640) < 10
    zoom = picture.shape[1] / 160
    side = picture[int(50 * zoom), int(120 * zoom) - 4 : int(120 * zoom) + 5]
    colour = np.array(AFTER_COLOUR) * 0.8  # drawn with alpha 0.8
    assert np.abs(side - colour).sum(1).min() < 60


def test_box_before_is_drawn_only_where_there_was_an_ascent():
    with_before = draw(0.9)
    without = draw(0.9, with_initial=False)
    zoom = with_before.shape[1] / 160
    column = slice(int(20 * zoom) - 4, int(20 * zoom) + 5)
    assert with_before[:, column].sum() > without[:, column].sum() == 0


def test_box_before_can_be_left_out():
    assert np.array_equal(
        draw(0.9, compare=False),
        draw(0.9, with_initial=False),
    )


def test_large_and_thin_images_become_pictures_of_bounded_size():
    nothing = InstanceData(
        bboxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0).long(),
    )
    for shape, longer in (((2000, 4000, 3), 1600), ((3, 5000, 3), 1600)):
        picture = draw_refinement(np.zeros(shape, np.uint8), nothing, ())
        assert abs(max(picture.shape) - longer) < 3


def test_masks_are_tinted():
    image = np.full((400, 640, 3), 100, np.uint8)
    masks = np.zeros((1, 400, 640), bool)
    masks[0, 100:150, 200:250] = True
    instances = InstanceData(
        bboxes=torch.tensor([[190.0, 90, 260, 160]]),
        masks=masks,
        scores=torch.ones(1),
        labels=torch.zeros(1).long(),
    )
    picture = draw_refinement(image, instances, ('thing',)).astype(int)
    assert picture[130, 230, 1] > 140 and picture[130, 230, 0] < 70
    assert np.abs(picture[300, 500] - 100).max() < 5


def test_boxes_below_the_threshold_are_left_out():
    assert draw(0.1).sum() == 0


def test_bands_around_the_sides_are_as_wide_as_their_deviations():
    image = np.zeros((400, 640, 3), np.uint8)
    box = dict(
        scores=torch.ones(2),
        labels=torch.zeros(2).long(),
        bboxes=torch.tensor([[100.0, 100, 300, 300], [400.0, 100, 600, 300]]),
    )
    picture = draw_refinement(
        image,
        InstanceData(
            **box, box_std=torch.tensor([[30.0, 10, 20, 10], [torch.nan] * 4])
        ),
        ('thing',),
    ).astype(int)
    plain = draw_refinement(image, InstanceData(**box), ('thing',)).astype(int)
    tinted = (picture - plain)[200, :, 1] > 20
    x = np.arange(len(tinted))
    # Right of x1 by up to 30 pixels, of x2 by 20; the side itself is green.
    for start, stop in ((70, 130), (280, 320)):
        inside = (
            (x > start + 2)
            & (x < stop - 2)
            & ~(np.abs(x - (start + stop) / 2) < 4)
        )
        assert tinted[inside].all()
    assert not tinted[(x > 133) & (x < 277)].any()
    assert not tinted[x > 323].any()  # unknown deviations draw nothing
