"""Weights of clusters from held-out detections."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from sklearn.linear_model import LogisticRegression

from mmdet_ebm.core import CLASS_SCORE_ALONE, object_features, object_probs
from mmdet_ebm.evaluation import object_fit
from mmdet_ebm.evaluation.density_fit import matched_rows
from mmdet_ebm.evaluation.object_fit import (
    fit_object_weights,
    object_evidence,
)

TRUE = dict(
    object_score=0.6, object_count=-0.5, object_mass=2.0, object_bias=-1.5
)


def drawn(number):
    """Detections whose matches follow TRUE."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(number, generator=generator)
    counts = 20 * torch.rand(number, generator=generator)
    share = torch.rand(number, generator=generator)
    support = torch.stack([counts, counts * share], 1)
    probs = object_probs(scores, support, TRUE)
    right = torch.rand(number, generator=generator) < probs
    return scores, support, right


def test_weights_are_found_again():
    found = fit_object_weights([drawn(20000)])
    assert found == pytest.approx(TRUE, abs=0.15)


def test_without_the_penalty_weights_are_those_of_another_library(
    monkeypatch,
):
    monkeypatch.setattr(object_fit, '_PENALTY', 0.0)
    scores, support, right = drawn(2000)
    features = object_features(scores.double(), support.double())
    other = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-8)
    other.fit(features.numpy(), right.numpy())
    found = fit_object_weights(
        [(scores[:900], support[:900], right[:900])]
        + [(scores[900:], support[900:], right[900:])]
    )
    assert list(found.values()) == pytest.approx(
        other.coef_[0].tolist(), abs=1e-2
    )


def test_few_or_one_sided_detections_give_mild_weights():
    scores, support, _ = drawn(5)
    for right in (torch.ones(5), torch.zeros(5)):
        found = fit_object_weights([(scores, support, right.bool())])
        away = [found[k] - CLASS_SCORE_ALONE[k] for k in found]
        assert max(map(abs, away)) < 3


def test_no_clusters_leave_the_class_score_alone():
    assert fit_object_weights([]) == CLASS_SCORE_ALONE
    nothing = (torch.zeros(0), torch.zeros(0, 2), torch.zeros(0).bool())
    assert fit_object_weights([nothing]) == pytest.approx(CLASS_SCORE_ALONE)


def image(boxes, labels, scores, truth, classes, ignored=None):
    found = InstanceData(
        bboxes=torch.tensor(boxes),
        labels=torch.tensor(labels),
        scores=torch.tensor(scores),
        cluster_support=torch.ones(len(boxes), 2),
    )
    sample = DetDataSample(metainfo=dict(scale_factor=(2.0, 2.0)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(truth), labels=torch.tensor(classes)
    )
    if ignored is not None:
        sample.ignored_instances = InstanceData(
            bboxes=torch.tensor([ignored[0]]),
            labels=torch.tensor([ignored[1]]),
        )
    return found, sample


def test_what_matches_is_right_and_what_is_ignored_is_left_out():
    """Annotations are in original pixels, at half the scale."""
    found, sample = image(
        [[0.0, 0, 20, 20], [40, 40, 60, 60], [80, 0, 90, 10], [82, 0, 92, 10]],
        [0, 0, 1, 0],
        [0.5, 0.4, 0.3, 0.2],
        [[0.0, 0, 10, 10], [20, 20, 30, 30]],
        [0, 1],
        ignored=([35.0, 0, 60, 20], 1),
    )
    rows, _ = matched_rows([found], [sample])
    ((scores, support, right),) = object_evidence([found], [sample], rows)
    # The second is of another class, the third lies in what is ignored, and
    # the fourth there too, but is of another class.
    torch.testing.assert_close(scores, torch.tensor([0.5, 0.4, 0.2]))
    assert right.tolist() == [True, False, False]
    assert support.shape == (3, 2)


def test_detections_without_clusters_are_no_evidence():
    found, sample = image([[0.0, 0, 9, 9]], [0], [0.5], [[0.0, 0, 4, 4]], [0])
    del found.cluster_support
    rows, _ = matched_rows([found], [sample])
    assert object_evidence([found], [sample], rows) == []
