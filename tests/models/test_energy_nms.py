"""Energy-ordered NMS against the algorithm written as a loop."""

import pytest
import torch
from mmdet.structures.bbox import bbox_overlaps

from mmdet_ebm.models import energy_nms
from mmdet_ebm.models.energy_nms import competing


def loop(boxes, scores, labels, logdensity, threshold):
    """IoU-Net, algorithm 1, for each class."""
    kept = []
    for label in labels.unique().tolist():
        left = (labels == label).nonzero()[:, 0].tolist()
        while left:
            best = max(left, key=lambda i: logdensity[i].item())
            cluster = [
                i
                for i in left
                if i == best
                or bbox_overlaps(boxes[best][None], boxes[i][None]).item()
                > threshold
            ]
            kept.append((max(scores[i].item() for i in cluster), best))
            left = [i for i in left if i not in cluster]
    return sorted(kept, reverse=True)


def candidates(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    size = 20 + 20 * torch.rand(count, 2, generator=generator)
    return (
        torch.cat([corner, corner + size], 1),
        torch.rand(count, generator=generator),
        torch.randint(3, (count,), generator=generator),
        torch.randn(count, generator=generator) * 5,
    )


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
def test_equals_the_loop(seed, threshold):
    arguments = candidates(seed=seed)
    keep, scores = energy_nms(*arguments, threshold, -1)
    expected = loop(*arguments, threshold)
    assert keep.tolist() == [index for _, index in expected]
    torch.testing.assert_close(
        scores, torch.tensor([score for score, _ in expected])
    )


def test_best_fitting_box_takes_the_best_score():
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [1.0, 0, 11, 10], [50.0, 0, 60, 10]]
    )
    keep, scores = energy_nms(
        boxes,
        torch.tensor([0.9, 0.4, 0.6]),
        torch.zeros(3).long(),
        torch.tensor([-3.0, 8.0, 1.0]),
        0.5,
        100,
    )
    assert keep.tolist() == [1, 2]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.6]))


def test_limit_keeps_the_largest_scores():
    arguments = candidates()
    keep, scores = energy_nms(*arguments, 0.5, -1)
    few, few_scores = energy_nms(*arguments, 0.5, 4)
    assert torch.equal(few, keep[:4]) and torch.equal(few_scores, scores[:4])


def test_nan_log_densities_come_last():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10]])
    keep, _ = energy_nms(
        boxes,
        torch.tensor([0.9, 0.4]),
        torch.zeros(2).long(),
        torch.tensor([float('nan'), -100.0]),
        0.5,
        100,
    )
    assert keep.tolist() == [1]


def test_no_candidates():
    keep, scores = energy_nms(
        torch.zeros(0, 4),
        torch.zeros(0),
        torch.zeros(0).long(),
        torch.zeros(0),
        0.5,
        100,
    )
    assert keep.shape == (0,) and scores.shape == (0,)


def test_identical_boxes_make_one_cluster():
    boxes = torch.tensor([[5.0, 5, 9, 9]]).expand(4, 4)
    keep, scores = energy_nms(
        boxes,
        torch.tensor([0.1, 0.7, 0.3, 0.2]),
        torch.ones(4).long(),
        torch.zeros(4),
        0.5,
        100,
    )
    assert len(keep) == 1 and scores.item() == pytest.approx(0.7)


def test_boxes_that_meet_no_other_of_their_class_do_not_compete():
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [1.0, 0, 11, 10],
            [0.0, 0, 10, 10],
            [50.0, 50, 60, 60],
            [5.0, 5, 5, 5],
        ]
    )
    labels = torch.tensor([0, 0, 1, 0, 0])
    assert competing(boxes, labels, 0.5).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert competing(boxes[:0], labels[:0], 0.5).shape == (0,)


def test_log_densities_of_boxes_that_do_not_compete_change_nothing():
    generator = torch.Generator().manual_seed(0)
    corner = 60 * torch.rand(80, 2, generator=generator)
    boxes = torch.cat([corner, corner + 10], 1)
    labels = torch.randint(3, (80,), generator=generator)
    scores = torch.rand(80, generator=generator)
    logdensity = torch.randn(80, generator=generator)
    meets = competing(boxes, labels, 0.4)
    assert 10 < meets.sum() < 70
    for found, expected in zip(
        energy_nms(boxes, scores, labels, logdensity * meets, 0.4, 30),
        energy_nms(boxes, scores, labels, logdensity, 0.4, 30),
    ):
        assert torch.equal(found, expected)
