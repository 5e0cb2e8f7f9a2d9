"""AP90 of predictions whose IoU is known."""

import json
import logging

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData

from mmdet_ebm.evaluation import CocoAP90Metric


@pytest.fixture
def annotations(tmp_path):
    """Two images with one box of 100 x 100 each."""
    content = dict(
        images=[dict(id=i, width=200, height=200) for i in (0, 1)],
        categories=[dict(id=1, name='thing')],
        annotations=[
            dict(
                id=i + 1,
                image_id=i,
                category_id=1,
                iscrowd=0,
                bbox=[20, 20, 100, 100],
                area=10000,
            )
            for i in (0, 1)
        ],
    )
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps(content))
    return str(path)


def detections(*widths):
    return InstanceData(
        bboxes=torch.tensor([[20.0, 20, 20 + w, 120] for w in widths]).view(
            -1, 4
        ),
        scores=torch.full((len(widths),), 0.9),
        labels=torch.zeros(len(widths), dtype=torch.long),
    )


def evaluate(metric, widths, plain=None):
    metric.dataset_meta = dict(classes=('thing',))
    for image_id, width in enumerate(widths):
        sample = DetDataSample(
            metainfo=dict(img_id=image_id, ori_shape=(200, 200))
        )
        sample.pred_instances = detections(width)
        if plain is not None:
            sample.plain_instances = detections(*plain[image_id])
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(size=len(widths))


@pytest.mark.parametrize(
    'widths, ap90, ap75',
    [
        ((100, 100), 1.0, 1.0),
        ((91, 91), 1.0, 1.0),  # IoU 0.91
        ((89, 89), 0.0, 1.0),  # IoU 0.89
        ((100, 60), 0.505, 0.505),  # half found: recall points 0 to 0.5 of 101
    ],
)
def test_ap90_counts_boxes_of_iou_above_090(annotations, widths, ap90, ap75):
    metrics = evaluate(CocoAP90Metric(ann_file=annotations), widths)
    assert metrics['coco/bbox_mAP_90'] == pytest.approx(ap90, abs=1e-3)
    assert metrics['coco/bbox_mAP_75'] == pytest.approx(ap75, abs=1e-3)


def test_other_metrics_are_cocos(annotations):
    ours = evaluate(CocoAP90Metric(ann_file=annotations), (100, 89))
    theirs = evaluate(CocoMetric(ann_file=annotations), (100, 89))
    assert {**theirs, 'coco/bbox_mAP_90': ours['coco/bbox_mAP_90']} == ours


def test_format_only_writes_without_evaluating(annotations, tmp_path):
    metric = CocoAP90Metric(
        ann_file=annotations,
        format_only=True,
        outfile_prefix=str(tmp_path / 'out'),
    )
    assert not evaluate(metric, (100, 89))
    assert (tmp_path / 'out.bbox.json').exists()


def test_the_gain_is_the_refined_ap_minus_the_plain_ap(annotations):
    """Plain IoU 0.80: no AP90, AP at 7 of 10 thresholds (0.50 to 0.80)."""
    metrics = evaluate(
        CocoAP90Metric(ann_file=annotations), (100, 100), [(80,), (80,)]
    )
    assert metrics['coco/bbox_mAP'] == 1
    assert metrics['coco/bbox_mAP_plain'] == pytest.approx(0.7, abs=1e-3)
    assert metrics['coco/bbox_mAP_gain'] == pytest.approx(0.3, abs=1e-3)
    assert metrics['coco/bbox_mAP_90_plain'] == 0
    assert metrics['coco/bbox_mAP_90_gain'] == 1


def test_the_gain_is_one_line_of_the_log(annotations, caplog):
    logger = MMLogger.get_current_instance()
    level = logger.level
    # Also makes the logger forget that other tests had turned logs off.
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    try:
        evaluate(
            CocoAP90Metric(ann_file=annotations), (100, 100), [(80,), (80,)]
        )
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    assert (
        'AP 70.0 plain, 100.0 refined (+30.0); AP90 0.0 plain, 100.0 '
        'refined (+100.0)'
    ) in caplog.text


def test_a_plain_detector_that_finds_nothing_has_an_ap_of_zero(annotations):
    metrics = evaluate(
        CocoAP90Metric(ann_file=annotations), (100, 100), [(), ()]
    )
    assert metrics['coco/bbox_mAP_plain'] == 0
    assert metrics['coco/bbox_mAP_gain'] == 1
