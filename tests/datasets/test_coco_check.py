"""What the check of a COCO folder finds."""

import json

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset

from mmdet_ebm.datasets import coco_check
from mmdet_ebm.datasets.coco_check import check_coco_split

from ..helpers import run_tool


@pytest.fixture
def coco(tmp_path):
    """A folder like COCO's with four small images, and its annotations."""
    folder = tmp_path / 'coco'
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'val2017').mkdir()
    images = []
    for i in range(4):
        images.append(
            dict(id=10 + i, file_name=f'{i:012}.jpg', width=40 + i, height=30)
        )
        cv2.imwrite(
            str(folder / 'val2017' / images[i]['file_name']),
            np.random.default_rng(i).integers(
                255, size=(30, 40 + i, 3), dtype=np.uint8
            ),
        )
    content = dict(
        images=images,
        annotations=[
            dict(
                id=i,
                image_id=10 + i // 2,
                category_id=90,
                bbox=[1, 2, 30.5, 20],
            )
            for i in range(5)
        ],
        categories=[
            dict(id=i, name=n)
            for i, n in zip(
                coco_check.CATEGORY_IDS, CocoDataset.METAINFO['classes']
            )
        ],
    )
    return folder, content


def check(coco, **options):
    folder, content = coco
    (folder / 'annotations/instances_val2017.json').write_text(
        json.dumps(content)
    )
    return check_coco_split(folder, 'val', **{'subset': True, **options})


def test_the_80_ids_are_cocos():
    assert len(coco_check.CATEGORY_IDS) == 80
    named = dict(zip(coco_check.CATEGORY_IDS, CocoDataset.METAINFO['classes']))
    assert (named[1], named[13], named[44], named[90]) == (
        'person',
        'stop sign',
        'bottle',
        'toothbrush',
    )


def test_a_whole_folder_has_no_faults(coco, monkeypatch):
    report = check(coco)
    assert report.errors == [] and len(report.warnings) == 1
    assert '4 images and 5 annotations' in report.facts[0]
    assert '3 images with annotations' in report.facts
    assert 'official file has 5,000 images' in report.warnings[0]
    assert 'official file' in check(coco, subset=False).errors[0]
    monkeypatch.setitem(coco_check.COUNTS, 'val', (4, 5))
    assert check(coco, subset=False).errors == []


def renamed(content):
    content['categories'][3]['name'] = 'motorbike'


def moved(content):
    content['annotations'][1]['bbox'] = [20, 2, 50, 22]


def strange(content):
    content['annotations'][0]['image_id'] = 999


def repeated(content):
    content['images'][1]['id'] = 10


@pytest.mark.parametrize(
    'spoil, message',
    [
        (renamed, "4 is 'motorbike' instead of 'motorcycle'"),
        (lambda c: c['categories'].pop(), "90 is 'missing' instead of"),
        (
            moved,
            'boxes outside their images (are they x, y, width, height?) (1',
        ),
        (strange, 'annotations of unknown images or categories (1): 0'),
        (repeated, '1 image ids are used more than once'),
        (
            lambda c: c['images'].append([1]),
            'images without a valid id, file_name, width, height (1): [1]',
        ),
        (
            lambda c: c['annotations'][1].pop('bbox'),
            'annotations without a valid id, image_id, category_id, bbox (1',
        ),
        (
            lambda c: c['annotations'][1]['bbox'].append(None),
            'annotations without a valid',
        ),
        (
            lambda c: c['categories'][0].update(id={}),
            'categories without a valid id, name (1',
        ),
        (
            lambda c: c.pop('categories'),
            'must hold lists of images, annotations',
        ),
    ],
)
def test_faults_of_annotations_are_named(coco, spoil, message):
    spoil(coco[1])
    assert any(message in error for error in check(coco).errors)


def test_boxes_without_area_are_a_warning(coco):
    coco[1]['annotations'][0]['bbox'][2] = 0
    report = check(coco)
    assert not report.errors and 'without area' in report.warnings[1]


def test_faults_of_image_files_are_named(coco):
    folder, content = coco
    paths = [folder / 'val2017' / i['file_name'] for i in content['images']]
    paths[0].unlink()
    paths[1].write_bytes(b'')
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[: len(whole) // 2])
    content['images'][3]['width'] = 99
    errors = check(coco, num_images=None).errors
    assert [e.split(':')[0] for e in errors] == [
        'image files are missing (1)',
        'image files are empty (1)',
        'image files are broken (2)',
    ]
    assert '000000000000.jpg' in errors[0] and 'not 99 x 30' in errors[2]
    assert len(check(coco, num_images=0).errors) == 2


def test_the_command_ends_with_its_verdict(coco, monkeypatch, capsys):
    check(coco)
    run = ('check_coco', coco[0], '--splits', 'val')
    for options, code, verdict in (
        (('--subset',), 0, 'Fit for training.'),
        ((), 1, 'ERROR: the official file'),
    ):
        with pytest.raises(SystemExit) as done:
            run_tool(monkeypatch, *run, *options)
        assert done.value.code == code
        assert verdict in capsys.readouterr().out
    path = coco[0] / 'annotations/instances_val2017.json'
    path.write_text(path.read_text()[:100])
    for fault in ('cut off', 'there is no'):
        with pytest.raises(SystemExit):
            run_tool(monkeypatch, *run)
        assert fault in capsys.readouterr().out
        path.unlink(missing_ok=True)
