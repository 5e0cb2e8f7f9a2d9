"""Feature levels: pooling across them, padding, layout, assignment."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from mmdet_ebm.ops import FeaturePyramid, prroi_pool

from .conftest import METHODS, ROIS, random_map


def test_a_pyramid_pools_each_box_from_its_level():
    levels = [random_map(), random_map()[:, :, :5, :6] + 1]
    pyramid = FeaturePyramid(levels, [1, 2])
    boxes = ROIS[:4, 1:]
    index = ROIS[:4, 0].long()
    level = torch.tensor([0, 1, 1, 0])
    pooled = pyramid.pool(boxes, index, level, (3, 3))
    for row in range(4):
        alone = prroi_pool(
            levels[level[row]], ROIS[row : row + 1], 3, [1.0, 0.5][level[row]]
        )
        torch.testing.assert_close(pooled[row : row + 1], alone)


@pytest.mark.parametrize('method', METHODS)
def test_padding_does_not_change_what_a_box_sees(method):
    """A map of 6 x 7 cells pools the same inside a padded one of 9 x 11."""
    features = random_map()
    boxes, index = ROIS[:4, 1:], torch.zeros(4, dtype=torch.long)
    level = torch.zeros_like(index)
    cropped = FeaturePyramid([features[:, :, :6, :7]], [4], method=method)
    padded = FeaturePyramid(
        [features], [4], [(23, 25), (36, 44)], method=method
    )
    torch.testing.assert_close(
        padded.pool(boxes * 4, index, level, (2, 2)),
        cropped.pool(boxes * 4, index, level, (2, 2)),
    )


def channels_last(maps):
    return [m.contiguous(memory_format=torch.channels_last) for m in maps]


PYRAMID = dict(
    level=torch.tensor([0, 1, 1, 0, 1, 0]),
    image_index=ROIS[:, 0].long(),
    output_size=(3, 2),
)


def test_small_maps_are_copied_into_one_table_and_a_single_one_is_not():
    fine, coarse = channels_last([random_map(), random_map()])
    assert not FeaturePyramid.is_in_place([fine, coarse])
    assert FeaturePyramid.costs_little([fine, coarse])
    assert FeaturePyramid.is_in_place([fine])
    large = fine.repeat(1, 1, 1 << 9, 1 << 5)
    assert large.numel() + coarse.numel() > 1 << 21
    assert FeaturePyramid.is_in_place(channels_last([large, coarse]))
    assert FeaturePyramid.costs_little(channels_last([large, coarse]))
    assert not FeaturePyramid.costs_little([large.contiguous(), coarse])


@pytest.mark.usefixtures('no_map_is_small')
def test_channels_last_maps_are_pooled_in_place():
    levels = [random_map(), random_map()[:, :, :5, :6] + 1]
    sizes = [(7, 9), (9, 8)]
    copied = FeaturePyramid(levels, [1, 2], sizes)
    in_place = FeaturePyramid(channels_last(levels), [1, 2], sizes)
    assert in_place.in_place and not copied.in_place
    torch.testing.assert_close(
        in_place.pool(ROIS[:, 1:], **PYRAMID),
        copied.pool(ROIS[:, 1:], **PYRAMID),
    )
    levels = channels_last(levels)
    pyramid = FeaturePyramid(levels, [1, 2])
    before = pyramid.pool(ROIS[:, 1:], **PYRAMID)
    for features in levels:
        features.mul_(2)
    torch.testing.assert_close(
        pyramid.pool(ROIS[:, 1:], **PYRAMID), 2 * before
    )


@pytest.mark.usefixtures('no_map_is_small')
def test_channels_last_maps_have_gradients_twice():
    fine, coarse = random_map(channels=1), random_map(channels=1)[..., :5, :6]
    arguments = [
        t.contiguous().requires_grad_() for t in (fine, coarse, ROIS[:, 1:])
    ]

    def pool(fine, coarse, boxes):
        # With one channel strides say nothing: a second one is needed.
        maps = channels_last(
            [torch.cat([m, 2 * m], 1) for m in (fine, coarse)]
        )
        pyramid = FeaturePyramid(maps, [1 / 0.9, 1 / 0.45], [(8, 9), (9, 10)])
        assert pyramid.in_place
        return pyramid.pool(boxes, **PYRAMID)

    assert gradcheck(pool, arguments)
    # All entries at once, along random directions: quick.
    assert gradgradcheck(pool, arguments, fast_mode=True)


STRIDES = (4, 8, 16, 32)


def test_boxes_are_mapped_to_levels_by_their_size():
    """Twice 56 pixels is where the second level begins, and so on."""
    maps = [random_map()] * 4
    sides = torch.tensor([1.0, 60, 111, 113, 223, 225, 440, 460, 9999])
    boxes = torch.zeros(9, 4)
    # Not squares: the root of the area counts.
    boxes[:, 2], boxes[:, 3] = sides * 2, sides / 2
    boxes += torch.rand(9, 1) * 100
    level = FeaturePyramid(maps, STRIDES).map_levels(boxes)
    assert level.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    level = FeaturePyramid(maps, STRIDES, finest_scale=28).map_levels(boxes)
    assert level.tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert FeaturePyramid(maps[:2], (8, 16)).finest_scale == 112


def test_levels_of_degenerate_boxes_are_valid():
    nan, inf = float('nan'), float('inf')
    boxes = torch.tensor(
        [[0, 0, 0, 0], [5, 5, 1, 1], [0, 0, nan, 3], [0, 0, inf, 3]]
    )
    level = FeaturePyramid([random_map()] * 4, STRIDES).map_levels(boxes)
    assert ((level >= 0) & (level <= 3)).all()


def test_maps_beyond_the_strides_are_left_alone():
    maps = [random_map(), random_map()[:, :, :5, :6], torch.zeros(7)]
    more, exact = (
        FeaturePyramid(maps, (1, 2)),
        FeaturePyramid(maps[:2], (1, 2)),
    )
    assert more.num_levels == 2 and more.strides == (1, 2)
    assert torch.equal(
        more.pool(ROIS[:, 1:], **PYRAMID), exact.pool(ROIS[:, 1:], **PYRAMID)
    )


def test_a_pyramid_knows_its_batch():
    pyramid = FeaturePyramid([random_map()], [4], [(36, 44), (20, 44)])
    assert (pyramid.num_images, pyramid.channels) == (2, 3)
    assert pyramid.dtype == torch.float64
    assert pyramid.image_sizes == [(36, 44), (20, 44)]


def test_pooling_by_prefix_sums_reads_nothing_back_to_the_host():
    """Tensors without data cannot be."""
    maps = [torch.zeros(2, 3, 9, 11, device='meta')] * 2
    pyramid = FeaturePyramid(maps, (1, 2), [(9, 11), (7, 8)], method='prefix')
    boxes = torch.zeros(5, 4, device='meta')
    index = torch.zeros(5, dtype=torch.long, device='meta')
    pooled = pyramid.pool(boxes, index, pyramid.map_levels(boxes), (3, 2))
    assert pooled.shape == (5, 3, 3, 2)


@pytest.mark.parametrize(
    'call, message',
    [
        (
            lambda: FeaturePyramid([random_map()], [1, 2]),
            '2 levels .* gives 1',
        ),
        (lambda: FeaturePyramid([random_map()], [1], [(9, 11)]), '2 images'),
        (lambda: FeaturePyramid([random_map()], []), 'positive numbers'),
        (lambda: FeaturePyramid([random_map()], [0]), 'positive numbers'),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
