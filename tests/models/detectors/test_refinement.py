"""The stages behind a detector's boxes; energy-ordered NMS against the
algorithm written as a loop."""

import math

import pytest
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmdet_ebm.core import FixedBoxDensity
from mmdet_ebm.models import Refinement, energy_nms
from mmdet_ebm.models.detectors import refine_detections
from mmdet_ebm.models.detectors.refinement import box_table, prior_of
from mmdet_ebm.ops import sides_to_boxes

from ...small_models import (
    SIZES,
    boxes,
    by_image,
    energy_model,
    feature_maps,
)


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


def random_boxes(count=60, seed=0):
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
def test_energy_nms_equals_the_loop(seed, threshold):
    arguments = random_boxes(seed=seed)
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


def test_boxes_kept_by_rounding_have_their_own_scores():
    """The NMS moves classes apart, so that the IoU of boxes in it rounds
    otherwise; here to below the threshold."""
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [2.6, 0, 12.6, 10], [900, 900, 1000, 1000]]
    )
    threshold = 0.5873
    assert bbox_overlaps(boxes[:1], boxes[1:2]) > threshold
    keep, scores = energy_nms(
        boxes,
        torch.tensor([0.4, 0.9, 0.6]),
        torch.full((3,), 79),
        torch.tensor([3.0, 2.0, 1.0]),
        threshold,
        100,
    )
    assert keep.tolist() == [1, 2, 0]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.6, 0.4]))


def test_limit_keeps_the_largest_scores():
    arguments = random_boxes()
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


def test_energy_nms_without_candidates():
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


# ------------------------------------------------------------------ the stages

TEST_CFG = ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


@pytest.fixture
def model():
    return energy_model(ascent=dict(step_length=(0.01, 0.01)))


@pytest.fixture
def pyramid(model):
    return model.pyramid(feature_maps(), SIZES)


@pytest.fixture
def found():
    """Two boxes in one image, three in the other, and a field of their own."""
    scores = [torch.tensor([0.4, 0.9]), torch.tensor([0.5, 0.7, 0.6])]
    return [
        InstanceData(bboxes=c, labels=k, scores=s, mine=10 * s)
        for c, k, s in zip(*by_image(boxes()), scores)
    ]


def stages(**switches):
    return Refinement(**{**dict(ascent=False, rank=False), **switches})


def test_stages_are_off_together():
    assert not stages(keep_plain=True).is_on
    for name in ('energy_nms', 'ascent', 'uncertainty'):
        assert stages(**{name: True}).is_on


def test_without_stages_nothing_changes(model, pyramid, found):
    results, plain = refine_detections(model, stages(), pyramid, found)
    assert plain is None
    for ours, theirs in zip(results, found, strict=True):
        assert set(ours.keys()) == set(theirs.keys())
        assert torch.equal(ours.bboxes, theirs.bboxes)


def test_ordering_tells_the_log_densities(model, pyramid, found):
    results, _ = refine_detections(
        model, stages(energy_nms=True), pyramid, found, TEST_CFG
    )
    values = model.logdensity(pyramid, boxes()).split([2, 3])
    for ours, theirs, f in zip(results, found, values, strict=True):
        order = theirs.scores.argsort(descending=True)  # nothing overlaps
        assert torch.equal(ours.bboxes, theirs.bboxes[order])
        assert torch.equal(ours.scores, theirs.scores[order])
        torch.testing.assert_close(ours.logdensities, f[order])
        assert torch.equal(ours.mine, 10 * ours.scores)
        assert 'initial_bboxes' not in ours


def test_the_ascent_moves_boxes_and_tells_where_they_were(
    model, pyramid, found
):
    results, _ = refine_detections(model, stages(ascent=True), pyramid, found)
    refined = model.refine(pyramid, boxes())
    corners = refined.corners.split([2, 3])
    values = refined.logdensity.split([2, 3])
    for ours, theirs, at, f in zip(
        results, found, corners, values, strict=True
    ):
        assert torch.equal(ours.initial_bboxes, theirs.bboxes)
        torch.testing.assert_close(ours.bboxes, at)
        torch.testing.assert_close(ours.logdensities, f)
        for name in ('scores', 'labels', 'mine'):
            assert torch.equal(ours[name], theirs[name])


@pytest.mark.parametrize('number', [0, 1, 2, -1])
@pytest.mark.parametrize('energy_nms', [False, True])
def test_the_best_boxes_of_an_image_are_moved(
    model, pyramid, found, number, energy_nms
):
    """The others stay, with the log-density of the ordering or none."""
    results, _ = refine_detections(
        model,
        stages(energy_nms=energy_nms, ascent=True, ascent_per_img=number),
        pyramid,
        found,
        TEST_CFG,
    )
    everything, _ = refine_detections(
        model,
        stages(energy_nms=energy_nms, ascent=True, ascent_per_img=-1),
        pyramid,
        found,
        TEST_CFG,
    )
    for ours, theirs in zip(results, everything, strict=True):
        rank = ours.scores.argsort(descending=True).argsort()
        chosen = rank < (number if number >= 0 else len(rank))
        torch.testing.assert_close(
            ours.bboxes[chosen], theirs.bboxes[chosen], rtol=0, atol=1e-3
        )
        torch.testing.assert_close(
            ours.logdensities[chosen], theirs.logdensities[chosen]
        )
        assert torch.equal(ours.initial_bboxes, theirs.initial_bboxes)
        moved = (ours.bboxes != ours.initial_bboxes).any(1)
        assert torch.equal(moved, chosen)
        assert torch.equal(
            ours.logdensities.isnan(), ~chosen & (not energy_nms)
        )


@pytest.mark.parametrize('number', [0, 1, 2, -1])
def test_uncertainty_is_told_of_the_best_boxes_of_an_image(
    model, pyramid, found, number
):
    results, _ = refine_detections(
        model,
        stages(uncertainty=True, ascent_per_img=number),
        pyramid,
        found,
    )
    known = model.uncertainty(pyramid, boxes()).std.split([2, 3])
    for ours, std in zip(results, known, strict=True):
        rank = ours.scores.argsort(descending=True).argsort()
        chosen = rank < (number if number >= 0 else len(rank))
        torch.testing.assert_close(
            ours.box_std[chosen], std[chosen], rtol=1e-3, atol=1e-4
        )
        assert ours.box_std[~chosen].isnan().all()
        assert torch.equal(ours.box_logprobs.isfinite(), chosen)


def test_the_prior_describes_boxes_that_f_is_not_asked_about(
    model, pyramid, found
):
    model.density = FixedBoxDensity(side_std=0.04)
    none, one, every = (
        refine_detections(
            model,
            stages(uncertainty=True, ascent_per_img=number),
            pyramid,
            found,
        )[0][1]
        for number in (0, 1, -1)
    )
    best = one.scores.argmax()
    others = torch.arange(len(one)) != best
    torch.testing.assert_close(one.box_std[others], none.box_std[others])
    torch.testing.assert_close(one.box_std[best], every.box_std[best])
    assert (one.box_std[best] != none.box_std[best]).any()
    for each in (none, one, every):
        assert each.box_std.isfinite().all()
        assert each.box_logprobs.isfinite().all()


def test_describing_and_ranking_ask_f_once(model, pyramid, found):
    model.density = FixedBoxDensity(side_std=0.04, quality_power=0.5)
    rows = []
    model.head.register_forward_hook(lambda *args: rows.append(len(args[2])))
    refine_detections(
        model, stages(uncertainty=True, rank=True), pyramid, found
    )
    assert sum(rows) == 9 * sum(map(len, found))


def test_candidates_are_limited_to_the_best_scores(model, pyramid, found):
    for nms_pre, counts in ((1, [1, 1]), (2, [2, 2]), (-1, [2, 3])):
        results, _ = refine_detections(
            model,
            stages(energy_nms=True, nms_pre=nms_pre),
            pyramid,
            found,
            TEST_CFG,
        )
        assert [len(each) for each in results] == counts
        assert results[1].scores[0] == 0.7


def test_plain_detections_went_through_the_ordinary_nms(model, pyramid):
    """The best score of an overlapping pair, not the best log-density."""
    pair = InstanceData(
        bboxes=torch.tensor([[5.0, 5, 45, 45], [6.0, 5, 46, 45]]),
        labels=torch.tensor([1, 1]),
        scores=torch.tensor([0.5, 0.6]),
    )
    pair = [pair, pair[:0]]
    results, plain = refine_detections(
        model,
        stages(energy_nms=True, keep_plain=True),
        pyramid,
        pair,
        TEST_CFG,
    )
    assert plain[0].bboxes.tolist() == [[6, 5, 46, 45]]
    assert [len(each) for each in results] == [1, 0] == list(map(len, plain))
    _, plain = refine_detections(
        model, stages(ascent=True, keep_plain=True), pyramid, pair
    )
    assert len(plain[0]) == 2  # whose NMS the detector has done


def test_a_bound_on_the_candidates_leaves_the_detections(model, pyramid):
    """It is on those of clusters, and of the NMS by log-density."""
    found = InstanceData(
        bboxes=torch.tensor(
            [[0.0, 0, 40, 40], [2, 0, 42, 40], [60, 0, 80, 9]]
        ),
        labels=torch.tensor([1, 1, 1]),
        scores=torch.tensor([0.6, 0.3, 0.2]),
    )
    model.density = FixedBoxDensity(vote_share=1)
    results, plain = refine_detections(
        model,
        stages(nms_pre=1, keep_plain=True),
        pyramid,
        [found, found[:0]],
        TEST_CFG,
    )
    for each in (results[0], plain[0]):
        assert each.scores.tolist() == found.scores[[0, 2]].tolist()
    # The one candidate is the first box itself.
    assert torch.equal(results[0].prior_bboxes, found.bboxes[[0, 2]])


def test_votes_are_means_of_the_boxes_that_nms_throws_away(model, pyramid):
    """Weighted by score and overlap; of the same class only."""
    found = InstanceData(
        bboxes=torch.tensor(
            [[0.0, 0, 40, 40], [2, 0, 42, 40], [2, 0, 42, 40], [60, 0, 80, 9]]
        ),
        labels=torch.tensor([1, 1, 2, 1]),
        scores=torch.tensor([0.6, 0.3, 0.1, 0.2]),
    )
    model.density = FixedBoxDensity(vote_share=1)
    results, _ = refine_detections(
        model, stages(), pyramid, [found, found[:0]], TEST_CFG
    )
    first = results[0]
    assert first.labels.tolist() == [1, 1, 2]
    iou = 38 / 42
    weight = 0.3 * math.exp(-((1 - iou) ** 2) / 0.05)
    shift = 2 * weight / (0.6 + weight)
    torch.testing.assert_close(
        first.prior_bboxes,
        torch.tensor(
            [[shift, 0, 40 + shift, 40], [60, 0, 80, 9], [2, 0, 42, 40]]
        ),
    )
    assert first.bboxes.tolist() == found.bboxes[[0, 3, 2]].tolist()
    # The count and the mass of each cluster.
    torch.testing.assert_close(
        first.cluster_support[0],
        torch.tensor([1 + weight / 0.3, 0.6 + weight]),
    )
    torch.testing.assert_close(
        first.cluster_support[1:, 1],
        first.cluster_support[1:, 0] * first.scores[1:],
    )
    assert len(results[1]) == 0 and results[1].cluster_support.shape == (0, 2)


def test_boxes_that_f_is_not_asked_about_go_to_the_centre_of_the_prior(
    model, pyramid
):
    """And the prior alone ranks them."""
    model.density = FixedBoxDensity(
        side_std=0.04, vote_share=1, quality_power=1
    )
    found = InstanceData(
        bboxes=torch.tensor(
            [[0.0, 0, 40, 40], [2, 0, 42, 40], [60, 0, 80, 9]]
        ),
        labels=torch.tensor([1, 1, 1]),
        scores=torch.tensor([0.6, 0.3, 0.2]),
    )

    def refined(number):
        results, _ = refine_detections(
            model,
            stages(ascent=True, rank=True, ascent_per_img=number),
            pyramid,
            [found],
            TEST_CFG,
        )
        (result,) = results
        return result[result.class_scores.argsort(descending=True)]

    none, one, both = map(refined, (0, 1, -1))
    assert torch.equal(none.bboxes, none.prior_bboxes)
    assert (none.bboxes[0] != none.initial_bboxes[0]).any()
    assert torch.equal(one.bboxes[1], none.bboxes[1])
    assert torch.equal(one.scores[1], none.scores[1])
    torch.testing.assert_close(one.scores[0], both.scores[0])
    assert one.scores[0] != none.scores[0]


def test_sides_go_to_their_medians_after_the_ascent(model, pyramid, found):
    """The boxes that f is asked about, four here.

    Each is asked about once less than without: the look at the sides tells f
    at the end of the last step.
    """
    model.density = FixedBoxDensity(side_std=0.04, quality_power=0.5)
    rows = []
    model.head.register_forward_hook(lambda *args: rows.append(len(args[2])))
    counts, results = [], []
    for medians in (False, True):
        rows.clear()
        ((_, each), _) = refine_detections(
            model,
            stages(ascent=True, rank=True, medians=medians, ascent_per_img=2),
            pyramid,
            found,
        )
        counts.append(sum(rows))
        results.append(each[each.class_scores.argsort()])
    assert counts[0] - counts[1] == 4
    before, after = results
    torch.testing.assert_close(
        after.logdensities, before.logdensities, equal_nan=True
    )
    boxes_then = box_table([before[:0], before])
    prior = prior_of(model.density, [before[:0], before])
    sides = model.side_densities(pyramid, boxes_then, prior).at_medians()
    expected = sides_to_boxes(sides.placed, prior.centres)
    torch.testing.assert_close(
        after.bboxes[1:], expected[1:], rtol=0, atol=1e-3
    )
    assert (after.bboxes[1:] != before.bboxes[1:]).any(1).all()
    assert torch.equal(after.bboxes[0], before.bboxes[0])
    assert torch.equal(after.qualities[0], before.qualities[0])


def test_medians_need_a_prior_and_an_f(model, pyramid, found):
    for density in (
        FixedBoxDensity(),
        FixedBoxDensity(side_std=0.04, temperature=math.inf),
    ):
        model.density = density
        with_medians, without = (
            refine_detections(
                model, stages(ascent=True, medians=medians), pyramid, found
            )[0]
            for medians in (True, False)
        )
        for ours, theirs in zip(with_medians, without, strict=True):
            assert torch.equal(ours.bboxes, theirs.bboxes)


def test_medians_leave_boxes_alone_that_cannot_be_refined(model, pyramid):
    """Points, boxes that are not numbers, and what lies outside."""
    model.density = FixedBoxDensity(side_std=0.2)
    nan = torch.nan
    found = InstanceData(
        bboxes=torch.tensor(
            [[5.0, 5, 5, 5], [nan, 0, 9, 9], [0, 0, 40, 40], [-9, 0, 50, 50]]
        ),
        labels=torch.zeros(4).long(),
        scores=torch.full((4,), 0.5),
    )
    results, _ = refine_detections(
        model, stages(ascent=True), pyramid, [found, found[:0]]
    )
    ours = results[0].bboxes
    assert torch.equal(ours[0], found.bboxes[0])
    assert ours[1].isnan().any()
    height, width = SIZES[0]
    limits = torch.tensor([width, height, width, height])
    assert (ours[2:] >= 0).all() and (ours[2:] <= limits).all()
    assert (ours[2:] != found.bboxes[2:]).any(1).all()
    assert len(results[1]) == 0


def test_ranking_multiplies_scores_by_quality_and_keeps_class_scores(
    model, pyramid, found
):
    model.density = FixedBoxDensity(side_std=0.04, quality_power=0.5)
    plain, _ = refine_detections(model, stages(), pyramid, found)
    ranked, _ = refine_detections(model, stages(rank=True), pyramid, found)
    for before, after in zip(plain, ranked):
        assert sorted(after.class_scores.tolist()) == sorted(
            before.scores.tolist()
        )
        assert (after.scores.diff() <= 0).all()
        assert (after.qualities > 0).all() and (after.qualities < 1).all()
        torch.testing.assert_close(
            after.scores, after.class_scores * after.qualities**0.5
        )
        # What else a detection carries goes with it.
        torch.testing.assert_close(after.mine, 10 * after.class_scores)


def test_clusters_change_the_scores_as_far_as_they_were_weighed(
    model, pyramid
):
    """Here, by the count alone: a detection of two boxes passes another."""
    found = InstanceData(
        bboxes=torch.tensor(
            [[0.0, 0, 40, 40], [1, 0, 41, 40], [60, 0, 80, 9]]
        ),
        labels=torch.tensor([1, 1, 1]),
        scores=torch.tensor([0.4, 0.3, 0.5]),
    )
    density = FixedBoxDensity(side_std=0.04, object_count=3, object_bias=-2)
    model.density = density
    (ranked, none), _ = refine_detections(
        model, stages(rank=True), pyramid, [found, found[:0]], TEST_CFG
    )
    torch.testing.assert_close(ranked.class_scores, torch.tensor([0.4, 0.5]))
    assert torch.equal(
        ranked.object_probs,
        density.object_probs(ranked.class_scores, ranked.cluster_support),
    )
    # The quality has no say, and nobody looked at it.
    assert torch.equal(ranked.scores, ranked.object_probs)
    assert 'qualities' not in ranked and 'prior_bboxes' not in ranked
    assert len(none) == 0

    model.density.set_numbers(quality_power=1.0)
    (ranked, _), _ = refine_detections(
        model, stages(rank=True), pyramid, [found, found[:0]], TEST_CFG
    )
    torch.testing.assert_close(
        ranked.scores, ranked.object_probs * ranked.qualities
    )
    (plain, _), _ = refine_detections(
        model, stages(), pyramid, [found, found[:0]], TEST_CFG
    )
    assert plain.scores.tolist() == found.scores[[2, 0]].tolist()


def test_clusters_are_asked_where_they_have_a_say():
    votes, weighs = (
        FixedBoxDensity(vote_share=0.5),
        FixedBoxDensity(object_count=1),
    )
    for rank in (False, True):
        assert stages(rank=rank).asks_clusters(votes)
        assert stages(rank=rank).asks_clusters(weighs) is rank
        assert not stages(rank=rank).asks_clusters(FixedBoxDensity())


def test_quality_is_in_the_results_only_where_it_has_a_say(model, pyramid):
    """With all stages of the default, which look at the quality anyway."""
    found = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 40, 40], [60, 0, 80, 9]]),
        labels=torch.tensor([1, 1]),
        scores=torch.tensor([0.4, 0.5]),
    )
    for power in (0.0, 0.5):
        model.density = FixedBoxDensity(
            side_std=0.04, object_count=3, quality_power=power
        )
        (first, _), _ = refine_detections(
            model, Refinement(), pyramid, [found, found[:0]], TEST_CFG
        )
        assert ('qualities' in first) is (power > 0)


def test_without_candidates_the_class_score_is_all_there_is(
    model, pyramid, found
):
    model.density = FixedBoxDensity(side_std=0.04, object_count=3)
    results, _ = refine_detections(model, stages(rank=True), pyramid, found)
    for before, after in zip(found, results):
        assert torch.equal(
            after.scores, before.scores.sort(descending=True).values
        )
        assert torch.equal(after.scores, after.object_probs)


def test_an_f_without_a_say_is_not_asked(model, pyramid, found):
    """Not by any stage: its log-densities would be NaN."""
    with torch.no_grad():
        model.head.fc_logdensity.bias.fill_(math.nan)
    model.density = FixedBoxDensity(
        temperature=math.inf, side_std=0.04, vote_share=1, quality_power=1
    )
    results, _ = refine_detections(
        model, Refinement(uncertainty=True), pyramid, found, TEST_CFG
    )
    for each in results:
        assert each.qualities.isfinite().all() and len(each)
        assert each.box_std.isfinite().all()
        assert torch.equal(each.bboxes, each.prior_bboxes)


def test_boxes_that_are_not_four_corners_are_refused(model, pyramid, found):
    for each in found:
        rotated = torch.cat([each.bboxes, each.scores[:, None]], 1)
        del each.bboxes
        each.bboxes = rotated
    with pytest.raises(ValueError, match='rotated'):
        refine_detections(model, stages(ascent=True), pyramid, found)
