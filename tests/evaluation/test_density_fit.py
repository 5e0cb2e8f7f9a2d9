"""The fit finds the numbers that made the data."""

import copy
from dataclasses import replace

import pytest
import torch

from mmdet_ebm.evaluation import density_fit
from mmdet_ebm.evaluation.density_fit import (
    MatchedDensities,
    detect_with_clusters,
    fit_shape,
    match_densities,
    side_noise,
    side_noise_logprob,
)

from .held_out import Passes, batches, fittable_model

COUNT = 1000


def made(
    f_std,
    prior_std,
    dof=1e6,
    temperature=1.0,
    worthless=False,
    slopes=(0.0, 0.0),
    voted=False,
):
    """True boxes from the prior, seen with noise: f is T * log p(seen|y).

    The truth is a draw of the density with the true numbers.
    """
    torch.manual_seed(0)
    offsets = side_noise(256).double()
    log_odds, log_size = torch.randn(2, COUNT).double()
    scale = prior_std * (slopes[0] * log_odds + slopes[1] * log_size).exp()
    centre = 0.05 * torch.randn(COUNT, 4).double() * voted
    student = torch.distributions.StudentT(torch.tensor(dof).double())
    truth = centre + scale[:, None] * student.sample((COUNT, 4))
    seen = truth + f_std * torch.randn(COUNT, 4).double()
    if worthless:  # of another box
        seen = seen.roll(1, 0)

    def f(y):
        return (
            -0.5 * temperature * ((y - seen[:, None]) / f_std).square().sum(-1)
        )

    return MatchedDensities(
        truth,
        f(truth[:, None])[:, 0],
        offsets,
        f(offsets[None].expand(COUNT, -1, -1)),
        centre,
        log_odds,
        log_size,
    )


def test_temperature_and_prior_are_found():
    found = fit_shape(made(0.08, 0.04, temperature=2.5), 0.0)
    assert found['temperature'] == pytest.approx(2.5, rel=0.1)
    assert found['side_std'] == pytest.approx(0.04, rel=0.1)
    assert found['score_slope'] == pytest.approx(0, abs=0.05)
    assert found['size_slope'] == pytest.approx(0, abs=0.05)
    assert found['gain'] > 0.1


def test_an_f_that_is_sharper_than_the_samples_are_dense_is_not_overrated():
    found = fit_shape(made(0.004, 0.04, temperature=2.5), 0.0)
    assert found['temperature'] == pytest.approx(2.5, rel=0.25)


def test_rare_large_errors_are_heavy_tails():
    found = fit_shape(made(0.08, 0.02, dof=2.0), 0.0)
    assert found['side_std'] == pytest.approx(0.02, rel=0.1)
    assert found['dof'] == pytest.approx(2.0, rel=0.25)


def test_errors_that_depend_on_score_and_size_are_found():
    found = fit_shape(made(0.08, 0.03, slopes=(-0.2, -0.4)), 0.0)
    assert found['score_slope'] == pytest.approx(-0.2, abs=0.05)
    assert found['size_slope'] == pytest.approx(-0.4, abs=0.05)


def test_a_vote_that_is_better_than_the_box_makes_a_narrower_prior():
    matched = made(0.2, 0.02, voted=True)
    around_vote, around_box = (
        fit_shape(matched, share)['side_std'] for share in (1.0, 0.0)
    )
    assert around_vote == pytest.approx(0.02, rel=0.1)
    assert around_box > 0.04


def test_an_f_that_knows_nothing_gets_a_large_temperature():
    found = fit_shape(made(0.08, 0.04, worthless=True), 0.0)
    assert found['temperature'] > 20
    assert found['gain'] == pytest.approx(0, abs=0.01)


def test_samples_follow_the_noise_that_they_are_weighted_by():
    # Mean and spread of each side, and independent sides.
    offsets = side_noise(4096)
    spread = (torch.tensor([0.01, 0.03, 0.08, 0.2]).square().mean()).sqrt()
    torch.testing.assert_close(
        offsets.std(0), spread.expand(4), rtol=0.02, atol=0
    )
    correlation = torch.corrcoef(offsets.T) - torch.eye(4)
    assert correlation.abs().max() < 0.05
    axis = torch.linspace(-1.5, 1.5, 20001).double()
    along = torch.zeros(20001, 4).double()
    along[:, 1] = axis
    at_zero = side_noise_logprob(torch.zeros(1, 4).double()) * 3 / 4
    mass = torch.trapezoid((side_noise_logprob(along) - at_zero).exp(), axis)
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_f_is_asked_at_the_annotation_and_around_the_box():
    model = fittable_model()
    (data,) = batches(model)
    model.data_preprocessor = Passes()
    found = match_densities(model, [data])
    count = len(found.truth)
    assert found.logdensity.shape == (count, len(found.offsets))
    # The annotations lie half a pixel from the boxes.
    assert float(found.truth.abs().min()) > 0
    assert found.at_truth.isfinite().all()


def test_a_large_split_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(density_fit, 'MAX_MATCHES', 1)
    model = fittable_model()
    data = batches(model)
    model.data_preprocessor = Passes()

    def endless():
        while True:
            yield from copy.deepcopy(data)

    once = len(match_densities(model, data).truth)
    assert len(match_densities(model, endless()).truth) == once


def test_clusters_have_the_candidates_that_inference_takes():
    """``nms_pre`` of them."""
    model = fittable_model()
    (data,) = batches(model)
    model.data_preprocessor = Passes()
    all_of_them, _, _ = detect_with_clusters(model, data)
    model.refinement = replace(model.refinement, nms_pre=8)
    some, _, _ = detect_with_clusters(model, data)
    counts = [
        torch.cat([each.cluster_support[:, 0] for each in found]).sum()
        for found in (all_of_them, some)
    ]
    assert counts[1] < counts[0]
    model.energy_model.density.set_numbers(object_mass=1.0, vote_share=1.0)
    with torch.no_grad():
        used = model.detect(data['inputs'], data['data_samples']).instances
    for fitted, each in zip(some, used):
        order = each.class_scores.argsort(descending=True)
        torch.testing.assert_close(
            each.cluster_support[order],
            fitted.cluster_support[fitted.scores.argsort(descending=True)],
        )
