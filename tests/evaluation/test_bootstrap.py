"""AP on resampled images agrees with COCO on the same images."""

import copy

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet_ebm.evaluation import MatchedDetections, bootstrap_differences


def coco_of(images, boxes, classes):
    coco = COCO()
    coco.dataset = dict(
        images=[dict(id=i, width=200, height=200) for i in range(images)],
        categories=[dict(id=c, name=str(c)) for c in (1, 2)],
        annotations=[
            dict(
                id=n + 1,
                image_id=i,
                category_id=c,
                bbox=list(b),
                area=b[2] * b[3],
                iscrowd=0,
            )
            for n, (i, b, c) in enumerate(
                zip(np.arange(images).repeat(3).tolist(), boxes, classes)
            )
        ],
    )
    coco.createIndex()
    return coco


@pytest.fixture
def split():
    """12 images of 3 boxes, and detections near them with random scores."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform([0, 0, 30, 30], [100, 100, 90, 90], (36, 4)).tolist()
    classes = rng.integers(1, 3, 36).tolist()
    truth = coco_of(12, boxes, classes)

    def detections(spread):
        return [
            dict(
                image_id=a['image_id'],
                category_id=a['category_id'],
                bbox=(np.array(a['bbox']) + rng.normal(0, spread, 4)).tolist(),
                score=float(rng.random()),
            )
            for a in truth.dataset['annotations']
        ]

    return truth, detections(2.0), detections(5.0)


def reference(truth, detections):
    evaluation = COCOeval(
        truth, truth.loadRes(copy.deepcopy(detections)), 'bbox'
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval['precision'][8, :, :, 0, 2]
    return dict(
        AP=evaluation.stats[0],
        AP50=evaluation.stats[1],
        AP75=evaluation.stats[2],
        AP90=precision.mean(),
    )


def test_all_images_give_cocos_own_numbers(split):
    truth, good, _ = split
    assert MatchedDetections(truth, good).average_precision() == (
        pytest.approx(reference(truth, good))
    )


def test_a_subset_gives_the_numbers_of_that_subset(split):
    truth, good, _ = split
    subset = [1, 4, 5, 9]
    part = COCO()
    part.dataset = dict(
        truth.dataset,
        images=[truth.imgs[i] for i in subset],
        annotations=[
            a for a in truth.dataset['annotations'] if a['image_id'] in subset
        ],
    )
    part.createIndex()
    expected = reference(part, [d for d in good if d['image_id'] in subset])
    matched = MatchedDetections(truth, good)
    weights = np.bincount(subset, minlength=12)[None]
    assert matched.average_precisions(weights)[0].tolist() == pytest.approx(
        list(expected.values()), abs=1e-12
    )


@pytest.mark.parametrize('crowd', [False, True])
def test_resamples_give_cocos_numbers_of_copies_of_the_images(split, crowd):
    """Copies are images of their own there."""
    truth, good, bad = split
    rng = np.random.default_rng(1)
    detections = good + bad
    if crowd:
        for each in truth.dataset['annotations'][::5]:
            each['iscrowd'] = 1
        truth.createIndex()
    matched = MatchedDetections(truth, detections)
    draws = rng.integers(12, size=(6, 12))
    weights = np.stack([np.bincount(d, minlength=12) for d in draws])
    found = matched.average_precisions(weights)
    for draw, ours in zip(draws, found):
        copies = COCO()
        images, annotations, results = [], [], []
        for new, old in enumerate(sorted(draw.tolist())):
            images.append(dict(id=new, width=200, height=200))
            annotations += [
                dict(a, id=1000 * (new + 1) + a['id'], image_id=new)
                for a in truth.dataset['annotations']
                if a['image_id'] == old
            ]
            results += [
                dict(d, image_id=new)
                for d in detections
                if d['image_id'] == old
            ]
        copies.dataset = dict(
            images=images,
            annotations=annotations,
            categories=truth.dataset['categories'],
        )
        copies.createIndex()
        assert ours.tolist() == pytest.approx(
            list(reference(copies, results).values()), abs=1e-9
        )


def test_without_equal_scores_resamples_are_cocos_to_the_last_digit(split):
    truth, good, bad = split
    matched = MatchedDetections(truth, good + bad)
    weights = np.ones((1, 12))
    weights[0, 3:7] = 0
    weights = np.concatenate([weights, np.ones((1, 12)), 3 * weights])
    part, whole, tripled = matched.average_precisions(weights)
    expected = list(matched.average_precision().values())
    assert whole.tolist() == pytest.approx(expected, abs=1e-12)
    assert tripled.tolist() == pytest.approx(part.tolist(), abs=1e-12)


def test_a_resample_without_a_class_leaves_it_out(split):
    truth, good, _ = split
    only = [
        i
        for i in range(12)
        if {a['category_id'] for a in truth.imgToAnns[i]} == {1}
    ]
    matched = MatchedDetections(truth, good)
    assert only
    weights = np.bincount(only, minlength=12)[None]
    part = COCO()
    part.dataset = dict(
        truth.dataset,
        images=[truth.imgs[i] for i in only],
        annotations=[
            a for a in truth.dataset['annotations'] if a['image_id'] in only
        ],
    )
    part.createIndex()
    expected = MatchedDetections(
        part, [d for d in good if d['image_id'] in only]
    ).average_precision()
    found = matched.average_precisions(weights)[0]
    assert found.tolist() == pytest.approx(list(expected.values()), abs=1e-12)
    assert np.isnan(matched.average_precisions(np.zeros((1, 12)))).all()


def test_ignoring_classes_gives_the_numbers_of_one_class_of_all(split):
    truth, good, bad = split
    other_class = [dict(d, category_id=3 - d['category_id']) for d in bad]
    detections = good + other_class
    one = COCO()
    one.dataset = dict(
        truth.dataset,
        annotations=[
            dict(a, category_id=1) for a in truth.dataset['annotations']
        ],
        categories=truth.dataset['categories'][:1],
    )
    one.createIndex()
    expected = reference(one, [dict(d, category_id=1) for d in detections])
    matched = MatchedDetections(truth, detections, by_class=False)
    found = matched.average_precision()
    assert found == pytest.approx(expected)
    assert found != MatchedDetections(truth, detections).average_precision()
    whole = matched.average_precisions(np.ones((1, 12)))[0]
    assert whole.tolist() == pytest.approx(list(expected.values()))


def test_a_clearly_better_system_has_an_interval_above_zero(split):
    truth, good, bad = split
    systems = dict(
        good=[MatchedDetections(truth, good)],
        bad=[MatchedDetections(truth, bad)],
    )
    pairs = [('good', 'bad'), ('bad', 'good')]
    found = bootstrap_differences(systems, pairs, 200)
    interval, reverse = (found[pair]['AP'] for pair in pairs)
    assert reverse['low'] == pytest.approx(-interval['high'])
    assert 0 < interval['low'] < interval['difference'] < interval['high']


def test_a_system_does_not_differ_from_itself(split):
    run = MatchedDetections(split[0], split[1])
    systems = dict(a=[run, run], b=[run])
    interval = bootstrap_differences(systems, [('a', 'b')], 20)['a', 'b'][
        'AP75'
    ]
    assert interval == dict(difference=0, low=0, high=0)


def test_no_detections_score_zero(split):
    assert MatchedDetections(split[0], []).average_precision()['AP'] == 0


def test_different_images_are_refused(split):
    truth, good, _ = split
    other = coco_of(3, [[0, 0, 9, 9]] * 9, [1] * 9)
    with pytest.raises(ValueError, match='same images'):
        bootstrap_differences(
            dict(
                a=[MatchedDetections(truth, good)],
                b=[MatchedDetections(other, [])],
            ),
            [('a', 'b')],
            5,
        )
