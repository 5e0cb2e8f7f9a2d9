"""Do scores say how often detections are right, on cases done by hand."""

import numpy as np
import pytest

from mmdet_ebm.evaluation.score_calibration import (
    binned_error,
    detection_ece,
    localisation_aware_ece,
    scored_matches,
)

from .test_bootstrap import coco_of

BOX = [10.0, 10.0, 40.0, 20.0]
HALF = [10.0, 10.0, 20.0, 20.0]  # IoU 0.5 with BOX
FAR = [150.0, 150.0, 10.0, 10.0]


def truth_of(images=4, crowd=False):
    """An object of each class in each image, and one more of the first."""
    other = [60.0, 60.0, 20.0, 20.0]
    truth = coco_of(images, [BOX, other, FAR] * images, [1, 2, 1] * images)
    for each in truth.dataset['annotations']:
        each['iscrowd'] = int(crowd and each['category_id'] == 2)
    return truth


def detection(image, bbox, score, category=1):
    return dict(image_id=image, category_id=category, bbox=bbox, score=score)


def test_scores_that_are_the_share_of_hits_have_no_error():
    found = [detection(0, BOX, 0.5), detection(1, [0.0, 90, 9, 9], 0.5)]
    assert detection_ece(truth_of(), found) == pytest.approx(0)
    # One half of the detections has an IoU of 1: 0.5 is what to expect.
    assert localisation_aware_ece(truth_of(), found) == pytest.approx(0)


def test_a_hit_counts_fully_for_one_and_by_its_overlap_for_the_other():
    found = [detection(0, HALF, 0.9)]
    assert detection_ece(truth_of(), found) == pytest.approx(0.1)
    assert localisation_aware_ece(truth_of(), found) == pytest.approx(0.4)


def test_classes_count_alike_or_are_thrown_together():
    found = [detection(i, BOX, 0.99) for i in range(3)]
    found.append(detection(0, BOX, 0.21, category=2))  # no match
    together = (3 * 0.01 + 0.21) / 4
    assert detection_ece(truth_of(), found) == pytest.approx(together)
    alike = (0.01 + 0.21) / 2
    assert localisation_aware_ece(truth_of(), found) == pytest.approx(alike)


def test_the_second_detection_of_an_object_is_none():
    found = [detection(0, BOX, 0.9), detection(0, BOX, 0.8)]
    (first, _) = scored_matches(truth_of(), found, 0.5)
    assert first.hits.tolist() == [True, False]
    assert first.ious.tolist() == [1, 0]


def test_detections_of_a_crowd_and_of_absent_classes_do_not_count():
    crowd = truth_of(crowd=True)
    found = [detection(0, [60.0, 60.0, 20.0, 20.0], 0.9, category=2)]
    assert len(scored_matches(crowd, found, 0.5)) == 1
    assert np.isnan(detection_ece(crowd, found))


def test_nothing_found_has_no_error():
    assert np.isnan(localisation_aware_ece(truth_of(), []))


def test_an_edge_belongs_to_the_lower_bin():
    # Bins end at 0.04, 0.08, ...: the two scores share a bin and cancel.
    scores, values = np.array([0.04, 0.01]), np.array([0.0, 0.05])
    assert binned_error(scores, values) == pytest.approx(0)
    assert binned_error(scores + 0.02, values) > 0.01
