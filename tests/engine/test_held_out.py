"""Which training images are kept aside where there is no val split."""

import json

import pytest
from mmengine.config import Config, ConfigDict

from mmdet_ebm.engine.held_out import keep_images_aside

NUMBER = 40


@pytest.fixture
def config(tmp_path):
    """40 images, of which one in ten is kept aside."""
    content = dict(
        images=[
            dict(id=i, file_name=f'{i}.png', width=9, height=9)
            for i in range(NUMBER)
        ],
        annotations=[
            dict(
                id=i,
                image_id=i,
                category_id=1,
                bbox=[1, 1, 5, 5],
                area=25,
                iscrowd=0,
            )
            for i in range(NUMBER)
        ],
        categories=[dict(id=1, name='thing')],
    )
    (tmp_path / 'train.json').write_text(json.dumps(content))

    def make():
        dataset = dict(
            type='CocoDataset',
            ann_file=str(tmp_path / 'train.json'),
            metainfo=dict(classes=('thing',)),
            data_prefix=dict(img=''),
            pipeline=[],
        )
        test = dict(pipeline=[resize(77), dict(type='PackDetInputs')])
        cfg = dict(
            default_scope='mmdet',
            model=dict(type='EnergyDetector', energy_model=dict()),
            train_dataloader=dict(dataset=dataset),
            test_dataloader=dict(dataset=test),
            test_pipeline=[resize(160), dict(type='PackDetInputs')],
            custom_hooks=[dict(type='FitDensityHook')],
        )
        return Config(ConfigDict(cfg))

    return make


def resize(size):
    return dict(type='Resize', scale=(size, size))


def used(cfg):
    """Images that are trained on, and those that are kept aside."""
    held_out = cfg.custom_hooks[0].dataloader.dataset
    return cfg.train_dataloader.dataset.indices, held_out.indices


def test_one_image_in_ten_is_kept_aside(config):
    cfg = config()
    assert '4 of 40 training images' in keep_images_aside(cfg)
    rest, kept = used(cfg)
    assert kept == [0, 13, 26, 39]
    assert sorted(rest + kept) == list(range(NUMBER))


@pytest.mark.parametrize(
    'indices, images',
    [
        (list(range(10, 35)), range(10, 35)),
        (25, range(25)),
        (-25, range(15, 40)),
    ],
)
def test_images_that_the_user_left_out_stay_out(config, indices, images):
    cfg = config()
    cfg.train_dataloader.dataset.indices = indices
    assert '2 of 25 training images' in keep_images_aside(cfg)
    rest, kept = used(cfg)
    assert kept == [images[0], images[-1]]
    assert sorted(rest + kept) == list(images)


def test_they_are_seen_as_the_test_loader_sees_images(config):
    """Not as a variable says that the loader does not use any more."""
    cfg = config()
    keep_images_aside(cfg)
    pipeline = cfg.custom_hooks[0].dataloader.dataset.pipeline
    assert [step['type'] for step in pipeline] == [
        'Resize',
        'LoadAnnotations',
        'PackDetInputs',
    ]
    assert pipeline[0]['scale'] == (77, 77)


def test_without_a_test_loader_the_usual_variable_is_taken(config):
    cfg = config()
    cfg.test_dataloader = None
    keep_images_aside(cfg)
    pipeline = cfg.custom_hooks[0].dataloader.dataset.pipeline
    assert pipeline[0]['scale'] == (160, 160)


def test_where_nothing_is_fitted_all_images_are_trained_on(config):
    cfg = config()
    cfg.model.energy_model.density = None
    assert keep_images_aside(cfg) == ''
    assert 'indices' not in cfg.train_dataloader.dataset
