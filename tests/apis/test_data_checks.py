"""Which data a config may name."""

import pytest
from mmengine.config import Config

from mmdet_ebm.apis.data_checks import naming_bad_annotations, require_files


@pytest.fixture
def config(tmp_path):
    """A config whose files exist."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'train.json').touch()
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='train.json',
        data_prefix=dict(img='images'),
    )
    return Config(
        dict(
            train_dataloader=dict(
                dataset=dict(type='ConcatDataset', datasets=[dataset, dataset])
            ),
            train_evaluator=dict(ann_file=str(tmp_path / 'train.json')),
        )
    )


SECOND = 'train_dataloader.dataset.datasets.1'


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {f'{SECOND}.ann_file': 'gone.json'},
            rf'no annotation file \S+/gone.json \({SECOND}.ann_file\)',
        ),
        (
            {f'{SECOND}.data_prefix.img': 'gone'},
            rf'no image folder \S+/gone \({SECOND}.data_prefix\)',
        ),
        (
            {'train_evaluator.ann_file': 'gone.json'},
            r'no annotation file gone.json \(train_evaluator.ann_file\)',
        ),
    ],
)
def test_missing_files_are_named_with_their_place(config, changes, message):
    require_files(config, ['train', 'val'])
    config.merge_from_dict(changes)
    with pytest.raises(ValueError, match=message):
        require_files(config, ['train'])


@pytest.mark.parametrize(
    'changes',
    [
        {f'{SECOND}.data_root': 's3://bucket'},
        {
            f'{SECOND}.ann_file': 'gone.json',
            f'{SECOND}.backend_args': {'a': 1},
        },
    ],
)
def test_files_that_are_not_local_are_not_looked_for(config, changes):
    config.merge_from_dict(changes)
    require_files(config, ['train'])


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'train.json is no JSON file, or is cut off'),
        (b'{"images": [', 'train.json is no JSON file, or is cut off'),
        (b'\xff\xfe\x00', 'train.json is no JSON file, or is cut off'),
        (b'[1, 2]', 'train.json must hold lists of images, annotations'),
        (b'{"images": []}', 'train.json must hold lists of images'),
    ],
)
def test_a_bad_annotation_file_is_named_with_its_place(
    config, tmp_path, content, message
):
    (tmp_path / 'train.json').write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        with naming_bad_annotations(config):
            raise TypeError('list indices must be integers')
    assert 'train_dataloader.dataset.datasets.0.ann_file' in str(caught.value)


def test_other_failures_are_left_as_they_are(config, tmp_path):
    whole = '{"images": [], "annotations": [], "categories": []}'
    (tmp_path / 'train.json').write_text(whole)
    with pytest.raises(TypeError, match='mine'):
        with naming_bad_annotations(config):
            raise TypeError('mine')
