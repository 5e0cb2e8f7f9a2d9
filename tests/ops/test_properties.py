"""What pooling and relative boxes promise, for any map and any box."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdet_ebm.ops import (
    boxes_to_relative,
    clip_boxes,
    prroi_pool,
    relative_to_boxes,
)

from ..properties import boxes, few, numbers, seeds, tables
from .conftest import METHODS

any_number = st.floats(width=32) | numbers(-20, 20)
any_box = st.lists(any_number, min_size=4, max_size=4)
bins = st.integers(1, 4)


def random_map(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    size = (1, 2, *torch.randint(1, 12, (2,), generator=generator).tolist())
    return scale * torch.randn(size, dtype=torch.float64, generator=generator)


def rois_of(corners):
    return torch.cat([torch.zeros(len(corners), 1), corners], 1).double()


@few
@given(seeds, tables(any_box), bins)
def test_both_methods_agree_on_any_box(seed, corners, size):
    cells, prefix = (
        prroi_pool(random_map(seed), rois_of(corners), size, method=method)
        for method in METHODS
    )
    # Prefix sums lose digits where a bin is a thousandth of a cell.
    torch.testing.assert_close(
        cells, prefix, atol=1e-5, rtol=1e-5, equal_nan=True
    )
    finite = corners.isfinite().all(1)
    assert (cells.isfinite().flatten(1).all(1) == finite).all()


@few
@given(seeds, tables(any_box), bins, st.sampled_from(METHODS))
def test_a_mean_lies_between_the_cells_and_the_outside(
    seed, corners, size, method
):
    features = random_map(seed)
    pooled = prroi_pool(features, rois_of(corners), size, method=method)
    known = pooled[pooled.isfinite()]
    assert (known <= features.max().clamp(min=0) + 1e-5).all()
    assert (known >= features.min().clamp(max=0) - 1e-5).all()


@few
@given(seeds, tables(boxes(20)), bins, st.sampled_from(METHODS))
def test_pooling_is_linear_in_the_features(seed, corners, size, method):
    rois = rois_of(corners)
    first = random_map(seed)
    second = torch.randn_like(first)

    def pool(features):
        return prroi_pool(features, rois, size, method=method)

    torch.testing.assert_close(
        pool(2 * first - 3 * second),
        2 * pool(first) - 3 * pool(second),
        atol=1e-8,
        rtol=1e-8,
    )


@few
@given(seeds, tables(any_box), st.sampled_from(METHODS))
def test_a_box_does_not_depend_on_the_others(seed, corners, method):
    features, rois = random_map(seed), rois_of(corners)
    together = prroi_pool(features, rois, 2, method=method)
    alone = [prroi_pool(features, roi[None], 2, method=method) for roi in rois]
    torch.testing.assert_close(together, torch.cat(alone), equal_nan=True)


@few
@given(tables(boxes()), boxes())
def test_relative_coordinates_lead_back_to_the_box(corners, reference):
    reference = torch.tensor(reference, dtype=torch.float64)
    back = relative_to_boxes(boxes_to_relative(corners, reference), reference)
    torch.testing.assert_close(back, corners, atol=1e-8, rtol=1e-8)


@few
@given(boxes(), numbers(-50, 50), numbers(0.25, 8))
def test_relative_coordinates_know_no_place_and_no_scale(box, shift, scale):
    box = torch.tensor(box, dtype=torch.float64)
    other = box * 0.75 + 3
    torch.testing.assert_close(
        boxes_to_relative(box * scale + shift, other * scale + shift),
        boxes_to_relative(box, other),
        atol=1e-6,
        rtol=1e-6,
    )


@few
@given(tables(st.lists(numbers(-1e6, 1e6), min_size=4, max_size=4)))
def test_clipped_boxes_lie_in_their_image(corners):
    index = torch.arange(len(corners)) % 2
    sizes = [(30, 40), (7, 5)]
    clipped = clip_boxes(corners, index, sizes)
    height, width = torch.tensor(sizes)[index].double().T
    assert (clipped >= 0).all()
    assert (clipped[:, 0::2] <= width[:, None]).all()
    assert (clipped[:, 1::2] <= height[:, None]).all()
    assert torch.equal(clip_boxes(clipped, index, sizes), clipped)
