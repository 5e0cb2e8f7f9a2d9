"""The probability of an object by class score and cluster."""

import math

import pytest
import torch

from mmdet_ebm.core import (
    CLASS_SCORE_ALONE,
    BoxDensity,
    object_features,
    object_probs,
)

SCORES = torch.tensor([0.2, 0.7, 0.9]).double()
SUPPORT = torch.tensor([[1.0, 0.2], [12.0, 6.0], [0.0, 0.0]]).double()
WEIGHTS = dict(
    object_score=0.8, object_count=0.5, object_mass=-0.3, object_bias=-1.0
)
NEARLY_ALONE = dict(CLASS_SCORE_ALONE, object_bias=1e-12)


def test_log_odds_are_a_weighted_sum():
    expected = []
    for q, (n, m) in zip(SCORES.tolist(), SUPPORT.tolist()):
        odds = (
            0.8 * math.log(q / (1 - q))
            + 0.5 * math.log(1 + n)
            - 0.3 * math.log(1 + m)
            - 1
        )
        expected.append(1 / (1 + math.exp(-odds)))
    found = object_probs(SCORES, SUPPORT, WEIGHTS)
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_p_is_the_class_score_without_weights_or_clusters():
    assert object_probs(SCORES, SUPPORT, CLASS_SCORE_ALONE) is SCORES
    assert object_probs(SCORES, None, WEIGHTS) is SCORES
    # The formula says the same.
    found = object_probs(SCORES, SUPPORT, NEARLY_ALONE)
    assert found is not SCORES
    torch.testing.assert_close(found, SCORES)


def test_scores_of_0_and_1_give_finite_features():
    scores = torch.tensor([0.0, 1.0])
    features = object_features(scores, torch.zeros(2, 2))
    assert features.isfinite().all() and features.shape == (2, 4)
    assert object_features(scores[:0], torch.zeros(0, 2)).shape == (0, 4)


def test_a_density_without_weights_returns_the_scores_themselves():
    density = BoxDensity()
    assert not density.weighs_clusters
    assert density.object_probs(SCORES, SUPPORT) is SCORES


def test_a_density_with_weights_asks_clusters():
    density = BoxDensity(**WEIGHTS)
    assert density.weighs_clusters
    torch.testing.assert_close(
        density.object_probs(SCORES, SUPPORT),
        object_probs(SCORES, SUPPORT, WEIGHTS),
    )


@pytest.mark.parametrize('wrong', [math.inf, math.nan, -1e300])
def test_weights_that_would_overflow_are_refused(wrong):
    with pytest.raises(ValueError, match='weights of an object at most 1000'):
        BoxDensity(object_mass=wrong)


def test_half_precision_is_good_enough_for_scores_near_1():
    scores = torch.tensor([0.9995, 1.0]).half()
    features = object_features(scores, SUPPORT[:2].half())
    assert features.dtype == torch.float32 and features.isfinite().all()
    found = object_probs(scores, SUPPORT[:2].half(), NEARLY_ALONE)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, scores)


def test_probabilities_work_on_the_meta_device():
    found = object_probs(SCORES.to('meta'), SUPPORT.to('meta'), WEIGHTS)
    assert found.shape == (3,) and found.device.type == 'meta'
