"""Pooling over levels: assignment, agreement with mmdet's extractor."""

import pytest
import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

from mmdet_ebm.models import PreciseRoIExtractor
from mmdet_ebm.ops import PrRoIPool


def pyramid(channels=4):
    return [torch.randn(2, channels, 96 // s, 96 // s) for s in (4, 8, 16, 32)]


def rois():
    sides = torch.tensor([3.0, 20.0, 111.0, 113.0, 230.0, 500.0, 1000.0])
    corner = torch.rand(7, 2) * 40 - 10
    return torch.cat(
        [torch.randint(2, (7, 1)).float(), corner, corner + sides[:, None]], 1
    )


def test_equals_mmdets_extractor_with_the_same_layer():
    """PrRoIPool serves as RoI layer there; levels and values agree."""
    theirs = SingleRoIExtractor(
        dict(type=PrRoIPool, output_size=7), 4, [4, 8, 16, 32]
    )
    ours = PreciseRoIExtractor(out_channels=4)
    feats, boxes = pyramid(), rois()
    torch.testing.assert_close(ours(feats, boxes), theirs(feats, boxes))
    torch.testing.assert_close(
        ours(feats, boxes, 1.3), theirs(feats, boxes, 1.3)
    )
    assert torch.equal(
        ours.map_roi_levels(boxes[:, 1:]), theirs.map_roi_levels(boxes, 4)
    )


def test_levels_of_degenerate_boxes_are_valid():
    boxes = torch.tensor(
        [
            [0, 0, 0, 0],
            [5, 5, 1, 1],
            [0, 0, float('nan'), 3],
            [0, 0, float('inf'), 3],
        ]
    )
    level = PreciseRoIExtractor().map_roi_levels(boxes)
    assert ((level >= 0) & (level <= 3)).all()


def test_missing_levels_and_channels_are_named():
    extractor = PreciseRoIExtractor(out_channels=4)
    with pytest.raises(ValueError, match='4 levels'):
        extractor.surface(pyramid()[:3])
    with pytest.raises(ValueError, match='5'):
        extractor.surface(pyramid(5))


def test_levels_beyond_the_strides_are_left_alone():
    extractor = PreciseRoIExtractor(4, (4, 8))
    feats, boxes = pyramid(), rois()
    torch.testing.assert_close(
        extractor(feats, boxes), extractor(feats[:2], boxes)
    )
