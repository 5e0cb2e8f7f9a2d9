"""Placed boxes decide how far f is trusted, and never below the detector."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps

from mmdet_ebm.core import CLASS_SCORE_ALONE, quality
from mmdet_ebm.evaluation import MatchedDetections, placed_quality
from mmdet_ebm.evaluation.coco_matching import coco_results
from mmdet_ebm.evaluation.density_fit import detect_with_clusters, matched_rows
from mmdet_ebm.evaluation.placed_quality import (
    POWERS,
    best_setting,
    fit_model,
    largest_good_power,
    place,
)

from .held_out import Passes, batches, fittable_model

STAY = dict(temperature=math.inf, side_std=0.2, vote_share=0.0)
MOVES = dict(temperature=1.0, side_std=0.2, vote_share=0.0)
VOTES = dict(temperature=math.inf, vote_share=1.0)
WEIGHTS = dict(CLASS_SCORE_ALONE, object_mass=2.0)


@pytest.fixture
def model():
    return fittable_model()


@pytest.fixture
def data(model):
    data = batches(model)
    model.data_preprocessor = Passes()
    return data


def test_boxes_that_stay_gain_nothing(model, data):
    placed = place(model, data, [STAY, MOVES])
    assert placed.gain(0) == (0, 0)
    plain = placed.average_precision(0, None)
    assert placed.average_precision(0, 0.0) == plain
    assert placed.average_precision(1, None) == plain
    assert placed.gain(1)[0] != 0


def test_a_gain_is_that_of_the_matched_boxes_weighted_by_score(model, data):
    found, _, samples = detect_with_clusters(model, data[0])
    rows, truth = matched_rows(found, samples)
    before, after = (
        torch.cat([each[name] for each in found])[rows]
        for name in ('bboxes', 'prior_bboxes')
    )
    scores = torch.cat([each.scores for each in found])[rows]
    worth = [
        quality(bbox_overlaps(boxes, truth, is_aligned=True))
        for boxes in (before, after)
    ]
    expected = (scores * (worth[1] - worth[0])).sum() / scores.sum()
    gain, _ = place(model, data, [VOTES]).gain(0)
    assert gain == pytest.approx(float(expected), abs=1e-6)
    assert gain != 0


def test_the_factor_makes_deviations_agree_with_errors(model, data):
    """Twice: a factor that is set already must not count."""
    for known in (1.0, 3.0):
        model.energy_model.density.set_numbers(
            std_factor=known, std_power=known / 2
        )
        placed = place(model, data, [STAY])
        found, _, samples = detect_with_clusters(model, data[0])
        rows, truth = matched_rows(found, samples)
        boxes = torch.cat([each.bboxes for each in found])[rows]
        error = (boxes - truth) / (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        fit = placed.deviations(0)
        # With dof = 3 deviations are sqrt(3) s, but for the ends of the grid.
        s = model.energy_model.density.prior(
            boxes, torch.cat([each.scores for each in found])[rows]
        ).std
        told = 0.2 / 0.04 * 1.73 * s[:, None]
        changed = fit['std_factor'] * told ** fit['std_power']
        assert float((error / changed).square().mean()) == pytest.approx(
            1, rel=0.2
        )


def test_a_look_leaves_the_density_and_the_stages_as_they_were(model, data):
    density = model.energy_model.density
    before = density.numbers(), model.refinement
    place(model, data, [MOVES, VOTES])
    assert (density.numbers(), model.refinement) == before


def test_a_model_is_fitted_in_place_and_never_below_the_detector(model, data):
    text = fit_model(model, data)
    density = model.energy_model.density
    assert density.fitted
    assert 'fitted on held-out images' in text
    numbers = density.numbers()
    power = numbers.pop('quality_power')
    weights = {name: numbers[name] for name in CLASS_SCORE_ALONE}
    placed = place(model, data, [numbers])
    plain = placed.average_precision(0, None)['AP']
    refined = placed.average_precision(0, power, True, weights)['AP']
    assert refined >= plain > 0


@pytest.fixture
def fit_where(model, data, monkeypatch):
    """A fit on made-up worths of the settings: its text and the density."""

    def fit(ap, gain, object_weights=CLASS_SCORE_ALONE):
        class Placed:
            def gain(self, setting):
                return gain(setting), 0.05

            def deviations(self, setting):
                return dict(std_factor=1.0 + setting)

            def average_precision(
                self, setting, power, by_class=True, object_weights=None
            ):
                weighed = object_weights is WEIGHTS
                return dict(AP=ap(power, by_class, weighed))

        Placed.object_weights = object_weights
        monkeypatch.setattr(placed_quality, 'place', lambda *args: Placed())
        return fit_model(model, data), model.energy_model.density

    return fit


def second_is_best(setting):
    return 0.1 * (setting == 1)


def test_what_gains_nothing_for_sure_leaves_boxes_where_they_are(fit_where):
    text, density = fit_where(
        lambda *args: 0.5, lambda setting: -0.1 * (setting > 0)
    )
    assert math.isinf(density.temperature) and density.vote_share == 0
    assert density.fitted and 'AP 50.0 plain, 50.0 refined' in text


def test_ap_has_a_veto(fit_where):
    """Quality rises and AP falls."""

    def ap(power, by_class, weighed):
        better = weighed and not by_class
        return 0.5 if power is None else 0.4 + 0.01 * better

    text, density = fit_where(ap, second_is_best, WEIGHTS)
    assert math.isinf(density.temperature) and density.quality_power == 0
    assert density.std_factor == 1  # of the boxes that stay
    assert not density.weighs_clusters
    assert 'boxes will stay' in text


def test_all_objects_together_choose_the_exponent(fit_where):
    """Few objects of a class would make the choice one of chance."""

    def ap(power, by_class, weighed):
        if power is None:
            return 0.3
        return 0.5 - 0.1 * abs(power - (1.0 if by_class else 0.25))

    text, density = fit_where(ap, second_is_best)
    assert density.quality_power == 0.25 and density.std_factor == 2
    assert 'AP 30.0 plain, 42.5 refined' in text  # the mean over the classes


@pytest.mark.parametrize('pays', [True, False])
def test_clusters_have_a_say_where_ap_of_all_objects_rises(fit_where, pays):
    def ap(power, by_class, weighed):
        change = 0.1 if pays or by_class else -0.1
        return 0.3 if power is None else 0.5 + change * weighed

    _, density = fit_where(ap, second_is_best, WEIGHTS)
    numbers = density.numbers()
    expected = WEIGHTS if pays else CLASS_SCORE_ALONE
    assert {name: numbers[name] for name in WEIGHTS} == expected


def test_a_veto_against_clusters_is_none_against_the_boxes(fit_where):
    """By class, clusters lose what placing gains."""

    def ap(power, by_class, weighed):
        if power is None:
            return 0.4
        if by_class:
            return 0.39 if weighed else 0.45
        return 0.6 if weighed else 0.5

    text, density = fit_where(ap, second_is_best, WEIGHTS)
    assert math.isfinite(density.temperature) and density.quality_power == 1
    assert not density.weighs_clusters
    assert 'AP 40.0 plain, 45.0 refined' in text


def test_clusters_must_be_worth_more_than_a_tie(fit_where):
    """The best exponents are compared, not the largest that are as good."""

    def ap(power, by_class, weighed):
        if weighed:
            return 0.5004
        return 0.4996 if power == 1 else 0.5

    _, density = fit_where(ap, second_is_best, WEIGHTS)
    assert not density.weighs_clusters


def test_ap_of_placed_boxes_is_that_of_the_model_itself(model, data):
    """With clusters in the scores, and an exponent.

    The class scores differ little, hence the weight.
    """
    weights = dict(
        object_score=-50.0, object_count=0.5, object_mass=1.0, object_bias=-40
    )
    placed = place(model, data, [MOVES])
    expected = placed.average_precision(0, 0.5, True, weights)
    changed = placed.average_precision(0, 0.5)
    density = model.energy_model.density
    density.set_numbers(**MOVES, **weights, quality_power=0.5)
    with torch.no_grad():
        (batch,) = data
        found = model.predict(
            batch['inputs'], copy.deepcopy(batch['data_samples'])
        )
    rows = [
        row
        for image, sample in enumerate(found)
        for row in coco_results(image, sample.pred_instances)
    ]
    ours = MatchedDetections(placed.truth, rows).average_precision()
    assert ours == pytest.approx(expected) and ours != changed


def test_the_largest_exponent_that_is_as_good_is_taken():
    ap = dict(zip(POWERS, (0.4, 0.4206, 0.4203, 0.41)))
    assert largest_good_power(ap) == 0.5


@pytest.mark.parametrize(
    'gains, expected',
    [
        ((0.0, 0.01, 0.002, 0.02), 3),
        ((0.0, 0.01, 0.02, 0.0202), 2),  # no more than a tie
        ((0.0, 0.0004, -0.01, -0.01), 0),
        ((0.0, 0.0006, -0.01, -0.01), 1),
        ((-math.inf,) * 4, 0),  # a single image
    ],
)
def test_f_must_be_worth_more_than_a_tie(gains, expected):
    assert best_setting((math.inf, 1.0, math.inf, 1.0), gains) == expected


def test_an_f_that_knows_nothing_is_not_asked_and_ranks_nothing(model, data):
    with torch.no_grad():
        model.energy_model.head.fc_logdensity.weight.zero_()
    text = fit_model(model, data)
    density = model.energy_model.density
    assert math.isinf(density.temperature) and density.quality_power == 0
    assert 'too little: it is not asked' in text


def test_without_an_energy_model_clusters_are_all_there_is(model, data):
    text = fit_model(model, data, ask_f=False)
    density = model.energy_model.density
    assert math.isinf(density.temperature) and density.fitted
    assert density.quality_power == 0
    assert math.isfinite(density.side_std)
    assert 'f is not asked' in text and 'nats' not in text


def test_one_image_tells_nothing_for_sure(model, data):
    (batch,) = data
    placed = place(model, [{k: v[:1] for k, v in batch.items()}], [MOVES])
    assert len(placed.settings[0].gains) == 1
    assert math.isinf(placed.gain(0)[1])


def test_the_text_says_if_the_model_is_used_otherwise(model, data):
    assert 'model.refinement' not in fit_model(model, data)
    model.refinement = replace(model.refinement, energy_nms=True, rank=False)
    text = fit_model(model, data)
    assert 'not of model.refinement with energy_nms=True, rank=False' in text


def test_matches_of_score_0_are_refused(model, data, monkeypatch):
    def worthless(*arguments):
        found, *others = detect_with_clusters(*arguments)
        for each in found:
            each.scores = torch.zeros_like(each.scores)
        return found, *others

    monkeypatch.setattr(placed_quality, 'detect_with_clusters', worthless)
    with pytest.raises(ValueError, match='class score above 0'):
        place(model, data, [STAY])


def test_an_f_that_is_not_finite_is_refused(model, data):
    with torch.no_grad():
        model.energy_model.head.fc_logdensity.bias.fill_(math.nan)
    with pytest.raises(ValueError, match='has its training diverged'):
        fit_model(model, data)
    assert not model.energy_model.density.fitted


def test_images_without_annotations_are_refused(model, data):
    (batch,) = data
    for sample in batch['data_samples']:
        del sample.gt_instances.bboxes
    with pytest.raises(ValueError, match='LoadAnnotations'):
        fit_model(model, data)


def test_images_without_a_match_are_refused(model, data):
    (batch,) = data
    for sample in batch['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    with pytest.raises(ValueError, match='nothing to fit'):
        fit_model(model, [batch])
    assert isinstance(batch['data_samples'][0], DetDataSample)
    assert not model.energy_model.density.fitted
