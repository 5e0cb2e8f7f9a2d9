"""Files of strangers are decoded, or refused with a reason."""

import numpy as np
import pytest
from PIL import Image

from mmdet_ebm.decoding import UnreadableInput, read_frames, read_image

from .helpers import (
    random_image,
    write_damaged_files,
    write_image,
    write_video,
)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_grey_alpha_and_16_bit_become_colour(tmp_path, suffix):
    image = random_image()
    alpha = np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    deep = image.astype(np.uint16) * 257
    for odd, expected in (
        (alpha, image),
        (deep, image),
        (image[..., 0], image[..., :1].repeat(3, 2)),
    ):
        path = write_image(tmp_path / f'odd{suffix}', odd)
        assert np.array_equal(read_image(path), expected)
        assert np.array_equal(read_image(odd), expected)


def test_photograph_is_turned_as_its_exif_says(tmp_path):
    """Orientation 6: what is on the left in the file belongs on top."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / 'turned.jpg', exif=exif)
    turned = read_image(tmp_path / 'turned.jpg')
    assert turned.shape == (80, 40, 3)
    assert turned[:15].mean() > 240 and turned[30:].mean() < 10


def test_damaged_files_say_what_is_wrong(tmp_path):
    for path, complaint in write_damaged_files(tmp_path / 'damaged'):
        with pytest.raises(UnreadableInput, match=complaint):
            read_image(path)


@pytest.mark.parametrize(
    'array',
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(UnreadableInput, match='an array must be'):
        read_image(array)


def test_a_video_gives_all_its_frames(tmp_path):
    frames = list(read_frames(write_video(tmp_path / 'clip.mp4', 5)))
    assert len(frames) == 5 and frames[0].shape == (48, 64, 3)


def test_cut_video_gives_what_it_has_and_says_so(tmp_path):
    data = write_video(tmp_path / 'clip.avi', 20, 'MJPG').read_bytes()
    # The index at the end goes, the frame count at the start stays.
    (tmp_path / 'cut.avi').write_bytes(data[: len(data) * 6 // 10])
    (tmp_path / 'text.mp4').write_text('not a video')
    for name in ('cut.avi', 'text.mp4'):
        with pytest.raises(UnreadableInput):
            list(read_frames(tmp_path / name))
