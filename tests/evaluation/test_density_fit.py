"""The fit finds the numbers that made the data."""

import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmdet_ebm.core import quasi_random_noise
from mmdet_ebm.evaluation import density_fit
from mmdet_ebm.evaluation.density_fit import (
    MatchedDensities,
    PlacedAP,
    evaluate_placed,
    fit_density,
    fit_model,
)

from ..small_models import (
    batch,
    build,
    detect_everything,
    energy_model_cfg,
)

COUNT = 4000


def made(
    f_std,
    prior_std,
    tail_share=0.0,
    tail_factor=3.0,
    temperature=1.0,
    worthless=False,
):
    """Boxes y of N(0, prior) seen with noise: f is temperature * log p(z|y).

    The truth is a draw of the density with the true numbers.
    """
    generator = torch.Generator().manual_seed(0)
    offsets = quasi_random_noise(
        256, torch.tensor([0.02, 0.05, 0.1, 0.2])[:, None], 4
    ).double()

    def normal():
        return torch.randn(COUNT, 4, generator=generator).double()

    wide = torch.rand(COUNT, 1, generator=generator) < tail_share
    truth = normal() * torch.where(wide, tail_factor, 1.0) * prior_std
    seen = truth + f_std * normal()
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
        torch.ones(COUNT).double(),
    )


def test_temperature_and_prior_are_found():
    found = fit_density(made(0.08, 0.04, temperature=2.5))
    assert found['temperature'] == pytest.approx(2.5, rel=0.1)
    narrow = found['centre_std'] * (
        1 if found['tail_share'] < 0.5 else found['tail_factor']
    )
    assert narrow == pytest.approx(0.04, rel=0.1)
    assert found['nll'] < found['nll_prior'] - 0.1


def test_rare_large_errors_are_the_tails():
    found = fit_density(made(0.08, 0.02, tail_share=0.3, tail_factor=4.0))
    assert found['centre_std'] == pytest.approx(0.02, rel=0.1)
    assert found['size_std'] == pytest.approx(0.02, rel=0.1)
    assert found['tail_share'] == pytest.approx(0.3, abs=0.05)
    assert found['tail_factor'] == pytest.approx(4, rel=0.15)


def test_an_f_that_knows_nothing_gets_a_large_temperature():
    found = fit_density(made(0.08, 0.04, worthless=True))
    assert found['temperature'] > 20
    assert found['nll'] == pytest.approx(found['nll_prior'], abs=0.01)


def test_the_smallest_exponent_that_is_as_good_is_taken():
    ap = PlacedAP(0.3, {0.0: 0.4, 0.25: 0.4203, 0.5: 0.4206, 1.0: 0.41})
    assert ap.best_power == 0.25


@pytest.fixture
def model():
    cfg = energy_model_cfg()
    cfg.energy_model.density = 'fitted'
    model = detect_everything(build(cfg)).eval()
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    model.detector.roi_head.test_cfg.max_per_img = 5
    return model


def batches(model):
    """Annotations near what the detector finds, in original pixels."""
    inputs, samples = batch()
    with torch.no_grad():
        found = model.detector.predict(
            inputs.clone(), copy.deepcopy(samples), rescale=True
        )
    for sample, one in zip(samples, found):
        truth = one.pred_instances
        sample.gt_instances = InstanceData(
            bboxes=truth.bboxes + 0.5, labels=truth.labels
        )
    return [dict(inputs=inputs, data_samples=samples)]


class Passes(torch.nn.Module):
    """A preprocessor for what is preprocessed already."""

    def forward(self, data, training=False):
        return dict(data, data_samples=copy.deepcopy(data['data_samples']))


def test_a_model_is_fitted_in_place_and_never_below_the_detector(model):
    data = batches(model)
    model.data_preprocessor = Passes()
    before = model.refinement
    text = fit_model(model, data)
    density = model.energy_model.density
    assert density.fitted and model.refinement == before
    assert 'fitted on held-out images' in text
    ap = evaluate_placed(model, data)
    assert ap.placed[density.quality_power] >= ap.plain > 0


def test_images_without_a_match_are_refused(model):
    (data,) = batches(model)
    for sample in data['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    model.data_preprocessor = Passes()
    with pytest.raises(ValueError, match='nothing to fit'):
        fit_model(model, [data])
    assert isinstance(data['data_samples'][0], DetDataSample)
    assert not model.energy_model.density.fitted


def test_a_large_split_is_not_read_to_its_end(model, monkeypatch):
    monkeypatch.setattr(density_fit, 'MAX_MATCHES', 1)
    model.data_preprocessor = Passes()

    def endless():
        while True:
            yield from copy.deepcopy(data)

    data = batches(model)
    once = len(density_fit.match_densities(model, data).truth)
    assert len(density_fit.match_densities(model, endless()).truth) == once
