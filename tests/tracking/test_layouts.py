"""Every layout gives the same boxes, counted from 0."""

import cv2
import numpy as np
import pytest

from mmdet_ebm.tracking import (
    find_tracks,
    read_boxes,
    read_frame,
    write_boxes,
)

from ..helpers import write_damaged_files
from .videos import moving_square, write_lines, write_otb

FRAMES, BOXES = moving_square(4)


def write_frames(folder, frames=FRAMES, start=1):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start):
        cv2.imwrite(str(folder / f'{number:05d}.jpg'), frame)


def otb(root):
    write_frames(root / 'a' / 'img')
    write_lines(root / 'a' / 'groundtruth_rect.txt', BOXES, 1, '\t')


def lasot(root):
    write_frames(root / 'cat' / 'a' / 'img')
    write_lines(root / 'cat' / 'a' / 'groundtruth.txt', BOXES, 1)
    for name in ('full_occlusion', 'out_of_view'):
        (root / 'cat' / 'a' / f'{name}.txt').write_text('0,0,0,0')


def got10k(root):
    write_frames(root / 'a')
    write_lines(root / 'a' / 'groundtruth.txt', BOXES, 1)
    (root / 'a' / 'absence.label').write_text('0\n0\n0\n0\n')


def trackingnet(root):
    write_frames(root / 'frames' / 'a', start=0)
    write_lines(root / 'anno' / 'a.txt', BOXES, 0)


def uav123(root):
    write_frames(root / 'data_seq' / 'UAV123' / 'a')
    write_lines(root / 'anno' / 'UAV123' / 'a.txt', BOXES, 1)


def davis(root):
    write_frames(root / 'JPEGImages' / '480p' / 'a', start=0)
    masks = np.zeros(FRAMES.shape[:3], np.uint8)
    for mask, (x, y, u, v) in zip(masks, BOXES.astype(int)):
        mask[y:v, x:u] = 255
    folder = root / 'Annotations' / '480p' / 'a'
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        cv2.imwrite(str(folder / f'{number:05d}.png'), mask)


@pytest.mark.parametrize(
    'write', [otb, lasot, got10k, trackingnet, uav123, davis]
)
def test_layouts_give_the_same_boxes_counted_from_zero(tmp_path, write):
    write(tmp_path)
    (track,) = find_tracks(tmp_path, write.__name__)
    assert track.name == 'a'
    assert len(track.frames) == 4
    np.testing.assert_allclose(track.boxes, BOXES)


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    trackingnet(tmp_path)
    folder = tmp_path / 'frames' / 'a'
    for old, new in zip(range(4), (8, 9, 10, 11)):
        (folder / f'{old:05d}.jpg').rename(folder / f'{new}.jpg')
    (track,) = find_tracks(tmp_path, 'trackingnet')
    assert [f.stem for f in track.frames] == ['8', '9', '10', '11']


def test_absent_targets_have_no_box(tmp_path):
    lasot(tmp_path / 'lasot')
    (tmp_path / 'lasot/cat/a/out_of_view.txt').write_text('0,1,0,0')
    uav123(tmp_path / 'uav')
    file = tmp_path / 'uav/anno/UAV123/a.txt'
    lines = file.read_text().splitlines()
    file.write_text('\n'.join([lines[0], 'NaN,NaN,NaN,NaN', *lines[2:]]))
    davis(tmp_path / 'davis')
    mask = tmp_path / 'davis/Annotations/480p/a/00001.png'
    cv2.imwrite(str(mask), np.zeros_like(FRAMES[0][..., 0]))
    for name, root in (('lasot', 'lasot'), ('uav123', 'uav'), ('davis',) * 2):
        (track,) = find_tracks(tmp_path / root, name)
        assert track.present.tolist() == [True, False, True, True]


def test_several_targets_of_a_video_are_several_tracks(tmp_path):
    otb(tmp_path)
    file = tmp_path / 'a' / 'groundtruth_rect.txt'
    for target in (1, 2):
        text = file.read_text()
        (tmp_path / 'a' / f'groundtruth_rect.{target}.txt').write_text(text)
    file.unlink()
    tracks = find_tracks(tmp_path, 'otb')
    assert [track.name for track in tracks] == ['a-1', 'a-2']


def test_frames_after_the_last_box_are_left_out(tmp_path):
    write_otb(tmp_path, num_frames=5)
    write_lines(tmp_path / 'square' / 'groundtruth_rect.txt', BOXES, 1)
    (track,) = find_tracks(tmp_path, 'otb')
    assert len(track.frames) == 4


@pytest.mark.parametrize(
    'text, reason',
    [
        ('1,2,3\n' * 4, 'should hold x, y, w and h'),
        ('cat\n' * 4, 'should hold x, y, w and h'),
        ('1,2,3,4\n' * 5, '4 frames and 5 boxes'),
        ('0,0,0,0\n' + '1,2,3,4\n' * 3, 'no box to start from'),
        ('', '4 boxes|0 boxes|no frames'),
    ],
)
def test_damaged_sequences_are_named_and_left_out(tmp_path, text, reason):
    otb(tmp_path)
    write_otb(tmp_path, 'whole')
    (tmp_path / 'a' / 'groundtruth_rect.txt').write_text(text)
    with pytest.warns(UserWarning, match=f'left out: a: .*({reason})'):
        (track,) = find_tracks(tmp_path, 'otb')
    assert track.name == 'whole'


def test_unknown_names_and_layouts_are_refused(tmp_path):
    otb(tmp_path)
    with pytest.raises(ValueError, match='no sequence b in'):
        find_tracks(tmp_path, 'otb', ['a', 'b'])
    with pytest.raises(ValueError, match='one of otb, lasot'):
        find_tracks(tmp_path, 'vot')


def test_boxes_survive_a_file(tmp_path):
    boxes = BOXES.copy()
    boxes[2] = np.nan
    for first_pixel in (0, 1):
        write_boxes(tmp_path / 'a.txt', boxes, first_pixel)
        np.testing.assert_allclose(
            read_boxes(tmp_path / 'a.txt', first_pixel), boxes
        )


def test_boxes_that_are_no_numbers_of_pixels_are_unknown(tmp_path):
    (tmp_path / 'boxes.txt').write_text(
        '1,1,4,4\n1e308,1,1e308,5\nnan,1,2,3\n1,1,0,5\n1,1,-2,5\n1e20,1,1,5\n'
    )
    boxes = read_boxes(tmp_path / 'boxes.txt', 1)
    assert np.isfinite(boxes).all(1).tolist() == [True] + [False] * 5


def test_frames_and_masks_of_strangers_are_damaged_not_dangerous(tmp_path):
    for path, _ in write_damaged_files(tmp_path / 'damaged'):
        assert read_frame(path) is None
    davis(tmp_path / 'davis')
    (mask, *_) = sorted((tmp_path / 'davis').rglob('Annotations/**/*.png'))
    mask.write_bytes(mask.read_bytes()[:-30])
    with (
        pytest.warns(UserWarning, match='left out: a: '),
        pytest.raises(ValueError, match='no sequence'),
    ):
        find_tracks(tmp_path / 'davis', 'davis')
