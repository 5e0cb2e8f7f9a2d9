"""Standard deviations of the sides: closed forms, edges, whole model."""

import math

import pytest
import torch

from mmdet_ebm.core import hessian
from mmdet_ebm.models import UncertaintyEstimator
from mmdet_ebm.models import energy_model as energy_model_module
from mmdet_ebm.models.uncertainty import DEFAULT_SIGMAS, MIN_SUPPORT
from mmdet_ebm.ops import Boxes

from ..small_models import (
    SIZES,
    boxes,
    energy_model,
    feature_maps,
    head_cfg,
    no_boxes,
)

SIGMA = torch.tensor([0.03, 0.05, 0.08, 0.06])  # of a Gaussian density
CORNERS = torch.tensor([[10.0, 20, 50, 30], [0.0, 0, 8, 16]])


def gaussian(relative):
    return -0.5 * (relative / SIGMA).square().sum(-1)


def exact_std(sigma):
    """Of t - exp(l) / 2 and so on, for independent Gaussians t and l."""
    half_size = (
        0.25 * (sigma[2:].square().exp() - 1) * (sigma[2:].square().exp())
    )
    relative = (sigma[:2].square() + half_size).sqrt().repeat(2)
    return relative * torch.tensor([[40.0, 10, 40, 10], [8.0, 16, 8, 16]])


def test_sampled_deviations_are_those_of_the_sides_of_a_gaussian():
    found = UncertaintyEstimator(num_samples=8192, radius=9.0)(
        gaussian, CORNERS
    )
    torch.testing.assert_close(found.std, exact_std(SIGMA), rtol=0.03, atol=0)
    torch.testing.assert_close(
        found.covariance.diagonal(dim1=1, dim2=2).sqrt(),
        SIGMA.expand(2, 4),
        rtol=0.03,
        atol=0,
    )
    logprob = -(2 * math.pi * SIGMA.square()).log().sum() / 2
    torch.testing.assert_close(
        found.logprob, logprob.expand(2), rtol=0, atol=0.05
    )
    assert (found.support > 1000).all()


def test_the_default_number_of_samples_is_within_a_quarter():
    found = UncertaintyEstimator()(gaussian, CORNERS)
    assert ((found.std / exact_std(SIGMA)).log().abs() < 0.25).all()
    assert (found.support > 20).all()


@pytest.mark.parametrize('shift', [0, 1])
def test_a_density_too_narrow_for_the_samples_is_unknown(shift):
    """Deviations of 1/2 to 5 % of the box, its top one of them away.

    They were up to four times too wide, without a word.
    """
    for sigma in (0.05, 0.03, 0.02, 0.015, 0.01, 0.008, 0.006, 0.004, 0.002):

        def narrow(relative, sigma=sigma):
            return -0.5 * (relative / sigma - shift).square().sum(-1)

        found = UncertaintyEstimator()(narrow, CORNERS)
        exact = exact_std(torch.full((4,), sigma))
        known = found.std.isfinite().all(1)
        assert known.all() == (found.support >= MIN_SUPPORT).all()
        assert known.tolist() == found.logprob.isfinite().tolist()
        assert known.all() or sigma < 0.015
        ratio = found.std[known] / exact[known]
        assert (ratio.log().abs() < 0.3).all()
    assert not known.any()


def test_curvature_gives_the_same_to_first_order():
    found = UncertaintyEstimator('laplace')(gaussian, CORNERS)
    torch.testing.assert_close(found.std, exact_std(SIGMA), rtol=0.01, atol=0)
    torch.testing.assert_close(
        found.covariance, SIGMA.square().diag().expand(2, 4, 4)
    )
    logprob = -(2 * math.pi * SIGMA.square()).log().sum() / 2
    torch.testing.assert_close(found.logprob, logprob.expand(2))
    assert found.support.tolist() == [1, 1]


def test_a_convex_f_is_as_wide_as_the_noise():
    found = UncertaintyEstimator('laplace')(
        lambda t: t.square().sum(-1), CORNERS
    )
    assert found.support.tolist() == [0, 0]
    widest = torch.full((4,), max(DEFAULT_SIGMAS)).square().diag()
    torch.testing.assert_close(found.covariance, widest.expand(2, 4, 4))


@pytest.mark.parametrize('method', ['sampling', 'laplace'])
def test_an_f_that_is_nan_gives_nan(method):

    def spoilt(relative):
        bad = torch.tensor([torch.nan, 0.0])[:, None]
        return gaussian(relative) + bad * relative.square().sum(-1)

    found = UncertaintyEstimator(method)(spoilt, CORNERS)
    for figure in (found.std, found.covariance, found.logprob):
        assert figure[0].isnan().all() and figure[1].isfinite().all()
    assert found.support[0] == 0


@pytest.mark.parametrize(
    'wrong, message',
    [
        (dict(radius=[3]), 'radius must be positive'),
        (dict(boxes_per_chunk=0), 'boxes_per_chunk must be a positive'),
        (dict(method='guess'), "'sampling' or 'laplace', got 'guess'"),
        (dict(num_samples=1), 'at least 4, got 1'),
        (dict(radius=-1.0), 'must be positive'),
        (dict(sigmas=()), 'at least one component'),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        energy_model(uncertainty=wrong)


# ----------------------------------------------------------- the whole model


def around(model, reference, maps=None):
    return model.uncertainty(
        model.pyramid(feature_maps() if maps is None else maps, SIZES),
        reference,
    )


def test_noise_of_the_training_method_is_the_proposal():
    for wanted, options in (
        (0.3, dict(uncertainty={})),
        (
            max(DEFAULT_SIGMAS),
            dict(uncertainty={}, loss=dict(type='DSMLoss')),
        ),
        (0.2, dict(uncertainty=dict(sigmas=(0.2,)))),
    ):
        estimator = energy_model(**options).uncertainty_estimator
        assert estimator.max_sigma == pytest.approx(wanted)


def test_uncertainty_adds_nothing_to_a_checkpoint():
    assert not [k for k in energy_model().state_dict() if 'uncertainty' in k]


METHODS = [None, dict(method='sampling'), dict(method='laplace')]


@pytest.mark.parametrize('uncertainty', METHODS)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_a_box_does_not_depend_on_its_batch_or_the_seed(
    uncertainty, mode, monkeypatch
):
    model = energy_model(uncertainty=uncertainty)
    together = around(model, boxes())
    torch.manual_seed(3)
    if uncertainty:  # box by box
        model.uncertainty_estimator.boxes_per_chunk = 1
    else:
        monkeypatch.setattr(energy_model_module, 'BOXES_PER_CHUNK', 8)
    with mode():
        alone = around(model, boxes(), [m.clone() for m in feature_maps()])
    for name in ('std', 'covariance', 'logprob', 'support'):
        torch.testing.assert_close(
            getattr(alone, name), getattr(together, name), rtol=1e-3, atol=1e-4
        )
    assert together.std.shape == (5, 4) and (together.std > 0).all()
    assert not together.std.requires_grad


def test_memory_is_bounded_by_chunks_of_boxes():
    model = energy_model(uncertainty=dict(num_samples=32, boxes_per_chunk=64))
    rows = []
    model.head.register_forward_hook(
        lambda module, args, out: rows.append(len(out))
    )
    around(model, boxes())
    assert max(rows) <= 64 and sum(rows) == 5 * (32 + 1)


def test_hessian_of_the_whole_model_is_that_of_finite_differences():
    """Through decoding, pooling and head, in float64, away from cell edges."""
    model = energy_model(uncertainty=dict(method='laplace')).double()
    reference = boxes(torch.float64)
    pyramid = model.pyramid([m.double() for m in feature_maps()], SIZES)
    f = model.logdensity_fn(pyramid, reference)
    step = 1e-4
    shifts = torch.eye(4, dtype=torch.float64) * step
    y = torch.zeros(5, 16, 4, dtype=torch.float64)
    pairs = [(i, j) for i in range(4) for j in range(4)]
    expected = sum(
        a
        * b
        * f(y + torch.stack([a * shifts[i] + b * shifts[j] for i, j in pairs]))
        for a in (1, -1)
        for b in (1, -1)
    ) / (4 * step**2)
    torch.testing.assert_close(
        hessian(f, y[:, 0]).flatten(1), expected.detach(), rtol=1e-3, atol=1e-2
    )


def test_samples_tell_it_of_a_head_with_kinks_too():
    for uncertainty in METHODS[:2]:
        model = energy_model(
            head=head_cfg(act_cfg=dict(type='ReLU')), uncertainty=uncertainty
        )
        assert around(model, boxes()).std.isfinite().all()


def test_sides_and_samples_agree_where_the_prior_is_gaussian_and_sharp():
    """Nearly all from the prior: its sides are independent."""
    density = dict(temperature=1e6, side_std=0.05, dof=50.0)
    sides, samples = (
        around(energy_model(density=density, uncertainty=uncertainty), boxes())
        for uncertainty in (None, dict(num_samples=4096))
    )
    torch.testing.assert_close(sides.std, samples.std, rtol=0.1, atol=0)
    torch.testing.assert_close(
        sides.covariance, samples.covariance, rtol=0, atol=5e-4
    )
    torch.testing.assert_close(
        sides.logprob, samples.logprob, rtol=0, atol=0.2
    )


@pytest.mark.parametrize('uncertainty', METHODS)
def test_the_fitted_factor_multiplies_deviations(uncertainty):
    model = energy_model(density=dict(side_std=0.1), uncertainty=uncertainty)
    usual = around(model, boxes())
    model.density.set_numbers(std_factor=2.0)
    twice = around(model, boxes())
    torch.testing.assert_close(twice.std, 2 * usual.std)
    torch.testing.assert_close(twice.covariance, 4 * usual.covariance)


@pytest.mark.parametrize('uncertainty', METHODS)
def test_the_fitted_power_brings_deviations_together(uncertainty):
    model = energy_model(density=dict(side_std=0.1), uncertainty=uncertainty)
    usual = around(model, boxes())
    model.density.set_numbers(std_factor=0.3, std_power=0.5)
    found = around(model, boxes())
    size = (boxes().corners[:, 2:] - boxes().corners[:, :2]).repeat(1, 2)
    known = usual.std.isfinite().all(1)
    assert known.any()
    expected = 0.3 * (usual.std / size).sqrt()
    torch.testing.assert_close(found.std / size, expected, equal_nan=True)
    # The covariance is that of the same sides.
    of = torch.tensor(
        [[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]]
    )
    sides = of @ found.covariance @ of.T
    if uncertainty is None or uncertainty.get('method') == 'laplace':
        torch.testing.assert_close(
            sides.diagonal(dim1=1, dim2=2)[known], expected[known].square()
        )
    model.density.set_numbers(std_power=0.0)
    alike = around(model, boxes()).std / size
    torch.testing.assert_close(
        alike[known], torch.full_like(alike[known], 0.3)
    )


def test_log_probability_is_a_density_in_the_space_of_the_box():
    """A box of half the size of the prior's centre, and the prior alone."""
    density = dict(temperature=math.inf, side_std=0.2, dof=50.0)
    model = energy_model(density=density)
    corners = torch.tensor([[20.0, 20, 40, 60]])
    centre = torch.tensor([[20.0, 20, 60, 100]])
    reference = Boxes.from_images(
        [corners, corners[:0]], [torch.zeros(1).long(), torch.zeros(0).long()]
    )
    pyramid = model.pyramid(feature_maps(), SIZES)
    found = model.uncertainty(pyramid, reference, model.density.prior(centre))
    t = torch.distributions.StudentT(50.0, scale=0.2)
    at = t.log_prob(torch.tensor([0, 0, -0.5, -0.5])).sum()
    expected = at + 4 * math.log(0.5)
    assert float(found.logprob) == pytest.approx(float(expected), abs=0.1)


def test_no_boxes():
    for uncertainty in METHODS:
        model = energy_model(uncertainty=uncertainty)
        assert around(model, no_boxes()).std.shape == (0, 4)


def test_tiny_boxes_are_unknown_and_boxes_at_the_border_are_not():
    corners = torch.tensor(
        [
            [10.0, 10, 11, 40],
            [20.0, 20, 20, 20],
            [0.0, 0, 96, 96],
            [90.0, 0, 110, 20],
        ]
    )
    reference = Boxes.from_images(
        [corners, corners[:0]],
        [torch.tensor([0, 1, 2, 0]), torch.zeros(0).long()],
    )
    found = around(energy_model(), reference)
    assert found.std[:2].isnan().all() and found.logprob[:2].isnan().all()
    assert found.support[:2].tolist() == [0, 0]
    assert (found.std[2:] > 0).all() and found.logprob[2:].isfinite().all()
