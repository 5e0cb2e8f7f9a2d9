"""Training pipelines without crops still load what is trained on."""

import json

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import RandomCrop
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.hub import get_config

from mmdet_ebm.engine import remove_crops
from mmdet_ebm.engine.crops import CROPS

from ..helpers import write_image

SHIPPED = {
    'ssd/ssd300_coco.py': ['MinIoURandomCrop'],
    'yolox/yolox_s_8xb8-300e_coco.py': ['Mosaic', 'RandomAffine', 'MixUp'],
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': [
        'CachedMosaic',
        'RandomCrop',
        'CachedMixUp',
    ],
    'detr/detr_r50_8xb2-150e_coco.py': ['RandomCrop'],
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': [],
}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Two images with an object that fills most of them."""
    folder = tmp_path_factory.mktemp('tiny')
    names = [str(write_image(folder / f'{i}.png', seed=i)) for i in range(2)]
    images = [
        dict(id=i, file_name=name, width=64, height=48)
        for i, name in enumerate(names)
    ]
    annotations = [
        dict(
            id=i,
            image_id=i,
            category_id=1,
            bbox=[4.0, 6.0, 56.0, 38.0],
            area=56.0 * 38.0,
            iscrowd=0,
        )
        for i in range(2)
    ]
    (folder / 'train.json').write_text(
        json.dumps(
            dict(
                images=images,
                annotations=annotations,
                categories=[dict(id=1, name='thing')],
            )
        )
    )
    return folder


def with_data(dataset, folder):
    """A config's data set, on the tiny data."""
    inner = dataset
    while 'dataset' in inner:
        inner = inner['dataset']
    inner.update(
        data_root=str(folder),
        ann_file='train.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('thing',)),
        filter_cfg=None,
    )
    return DATASETS.build(dataset)


def types_of(cfg):
    """All types that are named anywhere in a config."""
    if isinstance(cfg, dict):
        yield cfg.get('type')
        cfg = list(cfg.values())
    if isinstance(cfg, (list, tuple)):
        for each in cfg:
            yield from types_of(each)


@pytest.mark.parametrize('name', SHIPPED)
def test_detectors_as_shipped_load_whole_boxes(name, tiny):
    cfg = get_config(f'mmdet::{name}')
    before = cfg.train_dataloader.to_dict()
    assert remove_crops(cfg) == SHIPPED[name]
    after = cfg.train_dataloader.to_dict()
    assert not CROPS.intersection(types_of(after))
    assert not CROPS.intersection(types_of(cfg.get('custom_hooks') or []))
    if not SHIPPED[name]:
        assert after == before
    dataset = with_data(cfg.train_dataloader.dataset, tiny)
    (test_size,) = (
        step['scale']
        for step in cfg.val_dataloader.dataset.pipeline
        if step['type'] == 'Resize'
    )
    for _ in range(4):
        sample = dataset[0]
        (box,) = sample['data_samples'].gt_instances.bboxes.tensor
        height, width = sample['inputs'].shape[1:]
        assert max(height, width) <= max(test_size)
        # The object has the proportions that it has in the file.
        scale_x, scale_y = sample['data_samples'].scale_factor
        size = (box[2:] - box[:2]) / torch.tensor([scale_x, scale_y])
        if name.startswith('ssd'):  # Expand changes what a scale is of
            assert (box > 0).all() and (box < 300).all()
        else:
            np.testing.assert_allclose(size, [56, 38], rtol=0.02)


def config(pipeline, **changes):
    dataset = dict(type='CocoDataset', pipeline=pipeline)
    test = dict(pipeline=[dict(type='Resize', scale=(10, 10))])
    return Config(
        dict(
            train_dataloader=dict(dataset=dataset),
            val_dataloader=dict(dataset=test),
            **changes,
        )
    )


CROP, FLIP = dict(type='RandomCrop'), dict(type='RandomFlip')


def test_nested_steps_are_found():
    cfg = config(
        [dict(type='RandomApply', transforms=[CROP, FLIP], prob=0.3)]
        + [dict(type='RandomApply', transforms=[CROP], prob=0.3)]
    )
    assert remove_crops(cfg) == ['RandomCrop']
    assert cfg.train_dataloader.dataset.pipeline == [
        dict(type='RandomApply', transforms=[FLIP], prob=0.3)
    ]


@pytest.mark.parametrize(
    'crop',
    [
        dict(type='mmdet.RandomCrop'),
        dict(type=RandomCrop),
        dict(type='RandomApply', transforms=dict(type='RandomCrop')),
    ],
)
def test_other_ways_to_name_a_crop_are_found(crop):
    cfg = config([dict(type='mmdet.Resize', scale=(99, 99)), crop, FLIP])
    assert remove_crops(cfg) == ['RandomCrop']
    kept = cfg.train_dataloader.dataset.pipeline
    assert kept[-1] == FLIP and 'RandomCrop' not in str(kept)


def test_choices_that_crop_leave_their_share_to_the_others():
    choice = dict(
        type='RandomChoice',
        transforms=[[CROP], [FLIP], dict(type='Resize')],
        prob=[0.5, 0.3, 0.2],
    )
    cfg = config([choice])
    remove_crops(cfg)
    (step,) = cfg.train_dataloader.dataset.pipeline
    assert step.transforms == [[FLIP], [dict(type='Resize')]]
    np.testing.assert_allclose(step.prob, [0.6, 0.4])
    # If all of them crop, they remain without it.
    cfg = config([dict(type='RandomChoice', transforms=[[CROP, FLIP]])])
    remove_crops(cfg)
    assert cfg.train_dataloader.dataset.pipeline[0].transforms == [[FLIP]]


def test_the_size_before_a_crop_becomes_that_of_the_test():
    resize = dict(type='RandomResize', scale=(40, 40), ratio_range=(0.1, 2.0))
    cfg = config([resize, FLIP, CROP, dict(type='Resize', scale=(20, 20))])
    remove_crops(cfg)
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert [step.get('scale') for step in pipeline] == [
        (10, 10),
        None,
        (20, 20),
    ]
    cfg = config([resize, FLIP])
    remove_crops(cfg)
    assert cfg.train_dataloader.dataset.pipeline == [resize, FLIP]


def test_every_data_set_and_a_later_pipeline_are_cleaned():
    cfg = config(
        [FLIP],
        custom_hooks=[
            dict(type='PipelineSwitchHook', switch_pipeline=[FLIP, CROP]),
            dict(type='EMAHook'),
        ],
    )
    cfg.train_dataloader.dataset = dict(
        type='ConcatDataset',
        datasets=[
            dict(type='CocoDataset', pipeline=[CROP]),
            dict(type='RepeatDataset', dataset=dict(pipeline=[FLIP, CROP])),
        ],
    )
    assert remove_crops(cfg) == ['RandomCrop']
    first, second = cfg.train_dataloader.dataset.datasets
    assert first.pipeline == [] and second.dataset.pipeline == [FLIP]
    assert cfg.custom_hooks[0].switch_pipeline == [FLIP]
