"""From folders to pairs of patches, through mmdet's pipelines."""

import json

import numpy as np
import pytest
from mmdet.registry import DATASETS

import mmdet_ebm.datasets.tracking  # noqa: F401
from tests.helpers import write_image
from tests.tracking.videos import moving_square, write_otb

CROP = dict(type='CropPair', size=64, context=3.0, shift=0.3)


def build(kind, root, steps=(), **options):
    pipeline = [dict(type='SamplePair'), dict(type='LoadPair'), *steps]
    cfg = dict(type=kind, data_root=str(root), pipeline=pipeline, **options)
    return DATASETS.build(cfg)


def write_coco(root):
    frames, boxes = moving_square(1)
    write_image(root / 'images' / 'a.png', frames[0])
    x, y, u, v = boxes[0].tolist()
    annotations = [
        dict(id=1, bbox=[x, y, u - x, v - y]),
        dict(id=2, bbox=[0, 0, 5, 5]),
        dict(id=3, bbox=[0, 0, 96, 70]),
        dict(id=4, bbox=[0, 0, 30, 30], iscrowd=1),
    ]
    height, width = frames[0].shape[:2]
    content = dict(
        images=[dict(id=1, file_name='a.png', width=width, height=height)],
        annotations=[dict(a, image_id=1, category_id=1) for a in annotations],
    )
    (root / 'annotations').mkdir()
    (root / 'annotations' / 'a.json').write_text(json.dumps(content))
    return boxes


def pack(item):
    inputs, pair = item['inputs'], item['data_samples']
    boxes = [pair[i].gt_instances.bboxes.numpy() for i in (0, 1)]
    return inputs.numpy(), np.concatenate(boxes)


def test_a_pair_holds_the_same_target_twice(tmp_path):
    write_otb(tmp_path)
    np.random.seed(0)
    data = build(
        'SOTFolderDataset', tmp_path, [CROP, dict(type='PackTrackInputs')]
    )
    for _ in range(4):
        inputs, boxes = pack(data[0])
        assert inputs.shape == (2, 3, 64, 64)
        colours = []
        for image, (x1, y1, x2, y2) in zip(inputs, np.round(boxes)):
            part = image[:, int(y1) : int(y2), int(x1) : int(x2)]
            colours.append(part.mean((1, 2)))
        assert np.abs(colours[0] - colours[1]).max() < 12
        # The template is in the middle, what is searched need not be.
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert np.abs(centre[0] - 32).max() < 2


def test_only_frames_with_the_target_are_drawn_and_none_too_far(tmp_path):
    write_otb(tmp_path, num_frames=6)
    data = build('SOTFolderDataset', tmp_path, max_refetch=1)
    item = data.get_data_info(0)
    item['boxes'][[1, 4]] = np.nan
    from mmdet_ebm.datasets.tracking import SamplePair

    pairs = {
        tuple(SamplePair(2).transform(item)['img_id']) for _ in range(200)
    }
    # 0, 2, 3 and 5 have the target.
    assert pairs == {(0, 2), (2, 0), (2, 3), (3, 2), (3, 5), (5, 3)}


def test_names_choose_sequences(tmp_path):
    for name in ('a', 'b', 'c'):
        write_otb(tmp_path, name, num_frames=2)
    data = build('SOTFolderDataset', tmp_path, exclude=['b'])
    names = [data.get_data_info(i)['video_name'] for i in range(len(data))]
    assert names == ['a', 'c']
    assert len(build('SOTFolderDataset', tmp_path, names=['c'])) == 1


def test_objects_of_a_photo_are_tracks_of_one_frame(tmp_path):
    boxes = write_coco(tmp_path)
    data = build(
        'DetPairDataset', tmp_path, min_size=12, ann_file='annotations/a.json'
    )
    assert len(data) == 1  # not the tiny one, the one of all, the crowd
    item = data[0]
    np.testing.assert_allclose(item['boxes'], boxes.repeat(2, 0))
    assert len(item['img']) == 2


def test_damaged_frames_are_named_and_another_pair_is_drawn(tmp_path):
    for name in ('a', 'b'):
        write_otb(tmp_path, name, num_frames=2)
    (tmp_path / 'a' / 'img' / '0002.png').write_text('no image')
    data = build('SOTFolderDataset', tmp_path)
    with pytest.warns(UserWarning, match=r'0002\.png: no image'):
        assert data[0]['video_name'] == 'b'


def test_a_mirrored_pair_has_mirrored_boxes(tmp_path):
    write_otb(tmp_path, num_frames=2)
    off = dict(grey=0, light=0, blur=0)
    plain, mirrored = (
        build(
            'SOTFolderDataset',
            tmp_path,
            [CROP, dict(type='JitterPair', flip=flip, **off)],
        )
        for flip in (0.0, 1.0)
    )
    items = []
    for data in (plain, mirrored):
        np.random.seed(3)
        items.append(data[0])
    for i in (0, 1):
        np.testing.assert_array_equal(
            items[0]['img'][i], items[1]['img'][i][:, ::-1]
        )
        x1, y1, x2, y2 = items[0]['gt_bboxes'][i][0]
        np.testing.assert_allclose(
            items[1]['gt_bboxes'][i][0], [64 - x2, y1, 64 - x1, y2], rtol=1e-5
        )


def test_light_and_blur_leave_the_boxes(tmp_path):
    write_otb(tmp_path, num_frames=2)
    step = dict(type='JitterPair', flip=0, grey=1, light=0.3, blur=1)
    item = build('SOTFolderDataset', tmp_path, [CROP, step])[0]
    for image in item['img']:
        assert image.dtype == np.uint8
        spread = image.max(2).astype(int) - image.min(2)
        assert spread.max() <= 1  # grey


def test_frames_come_in_order_and_absent_targets_have_no_box(tmp_path):
    for name in ('a', 'b'):
        write_otb(tmp_path, name, num_frames=3)
    file = tmp_path / 'b' / 'groundtruth_rect.txt'
    lines = file.read_text().splitlines()
    file.write_text('\n'.join([lines[0], '0,0,0,0', lines[2]]))
    data = DATASETS.build(
        dict(type='SOTFrameDataset', data_root=str(tmp_path), pipeline=[])
    )
    items = [data.get_data_info(i) for i in range(len(data))]
    assert [(i['video_name'], i['frame_id']) for i in items] == [
        (name, t) for name in 'ab' for t in range(3)
    ]
    assert [len(i['gt_bboxes']) for i in items] == [1, 1, 1, 1, 0, 1]
