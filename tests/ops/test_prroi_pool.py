"""Precise RoI pooling against brute force, closed forms and gradcheck."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from mmdet_ebm.ops import PrRoIPool, grid_sums, prroi_pool

from .conftest import METHODS, ROIS, random_map


def numerical_mean(features, rois, bins, scale, points=300):
    """Midpoint rule on the bilinear surface, box by box."""
    pooled = []
    for roi in rois:
        x1, y1, x2, y2 = (roi[1:] * scale).tolist()
        steps = (torch.arange(bins * points, dtype=torch.float64) + 0.5) / (
            bins * points
        )
        x, y = x1 + steps * (x2 - x1), y1 + steps * (y2 - y1)
        hat_x = (1 - (x[:, None] - torch.arange(11)).abs()).clamp(min=0)
        hat_y = (1 - (y[:, None] - torch.arange(9)).abs()).clamp(min=0)
        surface = torch.einsum(
            'cij,yi,xj->cyx', features[int(roi[0])], hat_y, hat_x
        )
        pooled.append(
            surface.view(-1, bins, points, bins, points).mean((2, 4))
        )
    return torch.stack(pooled)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_equals_numerical_integral(method, scale):
    features = random_map()
    pooled = prroi_pool(features, ROIS, 3, scale, method)
    expected = numerical_mean(features, ROIS, 3, scale)
    # Midpoint error of a function with kinks: about (cell / points)^2.
    assert (pooled - expected).abs().max() < 2e-4


@pytest.mark.parametrize('method', METHODS)
def test_bins_of_whole_cells_average_trapezoids(method):
    """On a bin from cell a to b, the mean is the trapezoidal rule's."""
    features = random_map()
    roi = torch.tensor([[0, 2, 1, 6, 7]], dtype=torch.float64)
    pooled = prroi_pool(features, roi, (3, 2), method=method)
    weight = torch.tensor([0.5, 1, 0.5], dtype=torch.float64) / 2
    for p in range(3):
        for q in range(2):
            patch = features[
                0, :, 1 + 2 * p : 4 + 2 * p, 2 + 2 * q : 5 + 2 * q
            ]
            expected = torch.einsum('cij,i,j->c', patch, weight, weight)
            torch.testing.assert_close(pooled[0, :, p, q], expected)


@pytest.mark.parametrize('method', METHODS)
def test_coarse_bins_are_averages_of_fine_bins(method):
    features = random_map()
    fine = prroi_pool(features, ROIS, 6, method=method)
    coarse = prroi_pool(features, ROIS, 3, method=method)
    averaged = torch.nn.functional.avg_pool2d(fine, 2)
    torch.testing.assert_close(coarse, averaged)


@pytest.mark.parametrize('method', METHODS)
def test_constant_and_linear_maps_are_exact(method):
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing='ij')
    features = torch.stack([torch.ones_like(x), 2 * x - 3 * y + 1])[None]
    roi = torch.tensor([[0, 1.2, 0.7, 8.6, 7.1]])
    pooled = prroi_pool(features, roi, 1, method=method)[0, :, 0, 0]
    centre = 2 * (1.2 + 8.6) / 2 - 3 * (0.7 + 7.1) / 2 + 1
    torch.testing.assert_close(pooled, torch.tensor([1, centre]))


@pytest.mark.parametrize('method', METHODS)
def test_gradients_in_features_and_boxes_twice(method):
    features = random_map(channels=1).requires_grad_()
    boxes = ROIS[:5, 1:].clone().requires_grad_()

    def pool(features, boxes):
        return prroi_pool(
            features, torch.cat([ROIS[:5, :1], boxes], 1), 2, 0.9, method
        )

    assert gradcheck(pool, (features, boxes))
    assert gradgradcheck(pool, (features, boxes))


@pytest.mark.parametrize('method', METHODS)
def test_derivatives_do_not_depend_on_how_many_boxes_go_at_once(
    method, monkeypatch
):
    features = random_map().requires_grad_()
    boxes = ROIS[:, 1:].clone().requires_grad_()

    def derivatives():
        rois = torch.cat([ROIS[:, :1], boxes], 1)
        value = prroi_pool(features, rois, 3, 0.9, method).square().sum()
        first = torch.autograd.grad(
            value, (features, boxes), create_graph=True
        )
        second = torch.autograd.grad(
            sum(g.square().sum() for g in first), (features, boxes)
        )
        return *first, *second

    together = derivatives()
    monkeypatch.setattr(grid_sums, '_VALUES_PER_CHUNK', 1)
    torch.testing.assert_close(derivatives(), together)


def test_third_derivative_in_boxes_flows_through_features():
    """Score matching trains through the Hessian: d/df of d2/dbox2."""
    features = random_map(channels=1).requires_grad_()
    boxes = ROIS[:1, 1:].clone().requires_grad_()

    def curvature(features):
        rois = torch.cat([ROIS[:1, :1], boxes], 1)
        value = prroi_pool(features, rois, 2, 0.9).square().sum()
        (grad,) = torch.autograd.grad(value, boxes, create_graph=True)
        return torch.autograd.grad(grad.sum(), boxes, create_graph=True)[0]

    assert gradcheck(curvature, (features,))


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(
    'box',
    [(3, 3, 3, 5), (3, 3, 5, 3), (5, 5, 3, 2), (5, 2, 3, 5), (4, 4, 4, 4)],
)
def test_boxes_without_area_give_zero_and_no_gradient(method, box):
    features = random_map().requires_grad_()
    boxes = torch.tensor([box], dtype=torch.float64, requires_grad=True)
    pooled = prroi_pool(
        features,
        torch.cat([boxes.new_zeros(1, 1), boxes], 1),
        3,
        method=method,
    )
    assert (pooled == 0).all()
    grads = torch.autograd.grad(pooled.sum(), (features, boxes))
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize('method', METHODS)
def test_no_rois_keep_the_graph(method):
    features = random_map().requires_grad_()
    pooled = prroi_pool(features, torch.zeros(0, 5), 7, method=method)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert (features.grad == 0).all()


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_invalid_coordinates_stay_in_their_own_row(method, bad):
    features = random_map()
    rois = ROIS.clone()
    rois[2, 3] = bad
    pooled = prroi_pool(features, rois, 2, method=method)
    valid = [0, 1, 3, 4, 5]
    torch.testing.assert_close(
        pooled[valid], prroi_pool(features, ROIS, 2, method=method)[valid]
    )
    if bad != -float('inf'):  # an inverted box is empty, not invalid
        assert not (pooled[2].isfinite() & (pooled[2] != 0)).all()


@pytest.mark.parametrize('method', METHODS)
def test_images_of_a_batch_do_not_mix(method):
    features = random_map()
    alone = prroi_pool(
        features[1:],
        ROIS[1:2] * torch.tensor([0, 1, 1, 1, 1]),
        3,
        method=method,
    )
    together = prroi_pool(features, ROIS[1:2], 3, method=method)
    torch.testing.assert_close(alone, together)


def test_float32_agrees_with_float64_on_a_large_map():
    """Prefix sums in float32 would lose three digits here."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 4, 200, 336, generator=generator) + 3
    corner = torch.rand(50, 2, generator=generator) * 150
    size = torch.rand(50, 2, generator=generator) * 40 + 0.5
    rois = torch.cat([torch.zeros(50, 1), corner, corner + size], 1)
    exact = prroi_pool(features.double(), rois.double(), 7, method='cells')
    for method in METHODS:
        pooled = prroi_pool(features, rois, 7, method=method)
        assert pooled.dtype == torch.float32
        assert (pooled - exact).abs().max() < 2e-5, method


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float32(dtype):
    features = random_map(dtype=torch.float32).to(dtype)
    with torch.autocast('cpu', torch.bfloat16):
        pooled = prroi_pool(features, ROIS.float(), 3)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(
        pooled, prroi_pool(features.float(), ROIS.float(), 3)
    )


def test_memory_stays_far_below_one_map_per_roi():
    """4096 rois on a 64 x 128 x 128 map: K x C x H x W would be 17 GB."""
    features = torch.randn(1, 64, 128, 128)
    corner = torch.rand(4096, 2) * 100
    rois = torch.cat([torch.zeros(4096, 1), corner, corner + 20], 1)
    with torch.profiler.profile(profile_memory=True) as profile:
        pooled = prroi_pool(features, rois, 7)
    largest = max(
        event.self_cpu_memory_usage / max(event.count, 1)
        for event in profile.key_averages()
    )
    assert largest <= 2 * pooled.numel() * 4


@pytest.mark.parametrize('method', METHODS)
def test_no_images(method):
    pooled = prroi_pool(
        torch.zeros(0, 3, 8, 8), torch.zeros(0, 5), 7, method=method
    )
    assert pooled.shape == (0, 3, 7, 7)


def test_layer_equals_function():
    features = random_map()
    layer = PrRoIPool(3, spatial_scale=0.5)
    torch.testing.assert_close(
        layer(features, ROIS), prroi_pool(features, ROIS, 3, 0.5)
    )


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: prroi_pool(random_map(), torch.zeros(3, 4), 7), r'\(K, 5\)'),
        (
            lambda: prroi_pool(random_map()[0], torch.zeros(3, 5), 7),
            'N, C, H, W',
        ),
        (lambda: prroi_pool(random_map(), ROIS, 0), 'positive'),
        (lambda: prroi_pool(random_map(), ROIS, 7, method='fast'), 'auto'),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_both_methods_agree_on_boxes_that_are_not_finite(bad):
    features = random_map()
    for column in (1, 2, 3, 4):
        rois = ROIS[:1].clone()
        rois[0, column] = bad
        for method in METHODS:
            assert prroi_pool(features, rois, 2, method=method).isnan().all()


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_cell_that_is_not_finite_spoils_the_bins_on_it_alone(method, bad):
    clean, features = random_map(), random_map()
    features[0, 1, 3, 4] = features[0, 1, 0, 0] = bad
    # On one of the two cells; then around them, in the other image, outside
    # of the map and without area.
    rois = torch.tensor(
        [
            [0, 0, 0, 3, 2],
            [0, 3.1, 2.1, 4.9, 3.9],
            [0, 1, 1, 3, 2],
            [0, 5, 0, 10, 2],
            [0, 5, 4, 10, 8],
            [0, 0, 4, 10, 8],
            [1, 0, 0, 10, 8],
            [0, -30, -30, -20, -20],
            [0, 4, 3, 4, 3],
        ],
        dtype=torch.float64,
    )
    pooled = prroi_pool(features, rois, 1, method=method)
    assert not pooled[:2, 1].isfinite().any()
    torch.testing.assert_close(
        pooled[2:], prroi_pool(clean, rois[2:], 1, method=method)
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_methods_agree_on_tiny_boxes_far_from_the_origin(dtype):
    """Boxes of 0.01 down to 1e-5 cells on a map of 1000 x 1000 cells."""
    features = torch.rand(1, 2, 1000, 1000, dtype=dtype)
    sides = torch.tensor([1e-2, 1e-3, 3e-4, 1e-4], dtype=dtype)
    start = torch.tensor([990.3, 980.6], dtype=dtype).expand(4, 2)
    rois = torch.cat(
        [torch.zeros(4, 1, dtype=dtype), start, start + sides[:, None]], 1
    )
    cells, prefix = (
        prroi_pool(features, rois, 7, method=method) for method in METHODS
    )
    at_point = prroi_pool(
        features.double(),
        torch.tensor([[0, 990.3, 980.6, 990.31, 980.61]]).double(),
        1,
        method='cells',
    )
    for pooled in (cells, prefix):
        # The surface changes by less than 1 over a cell.
        assert (pooled - at_point).abs().max() < 0.03
    assert (cells - prefix).abs().max() < 2e-3


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('index', [-1, 2])
def test_an_image_that_is_not_there_is_an_error(method, index):
    rois = ROIS[:2].clone()
    rois[1, 0] = index
    with pytest.raises(ValueError, match='image index must be from 0 to 1'):
        prroi_pool(random_map(), rois, 2, method=method)
