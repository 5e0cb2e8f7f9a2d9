"""Which images a run takes, what they are called, what is read of them."""

import pytest

from mmdet_ebm.apis.inputs import expand_inputs

from ..helpers import (
    random_image,
)


def names(*args, **kwargs):
    return [source.name for source in expand_inputs(*args, **kwargs)]


def test_folder_stands_for_its_images_and_videos(tmp_path):
    (tmp_path / 'sub').mkdir()
    for name in ('b.png', 'a.JPG', 'clip.mp4', 'notes.txt', 'sub/c.png'):
        (tmp_path / name).touch()
    assert names(tmp_path) == ['a.JPG', 'b.png', 'clip.mp4']
    assert names(tmp_path, recursive=True) == [
        'a.JPG',
        'b.png',
        'clip.mp4',
        'sub/c.png',
    ]
    # Named itself, a file is taken whatever it is called, and once.
    assert names(
        [tmp_path / 'notes.txt', tmp_path / 'sub', str(tmp_path / 'notes.txt')]
    ) == ['notes.txt', 'sub/c.png']


def test_names_mirror_the_tree_below_what_inputs_share(tmp_path):
    for name in ('a/x.jpg', 'b/x.jpg', 'b/x.png', 'b/deep/x.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names([tmp_path / 'a', tmp_path / 'b']) == [
        'a/x.jpg',
        'b/x.jpg',
        'b/x.png',
    ]
    assert names(f'{tmp_path}/*/x.jpg') == ['a/x.jpg', 'b/x.jpg']
    assert names(f'{tmp_path}/b/**/*.jpg') == ['deep/x.jpg', 'x.jpg']
    assert names(tmp_path / 'a' / 'x.jpg') == ['x.jpg']


def test_arrays_are_numbered():
    image = random_image()
    assert names(image) == ['00000000']
    assert names([image, image], first_array=7) == ['00000007', '00000008']


def test_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    (tmp_path / 'x[1].png').touch()
    assert names(tmp_path / 'x[1].png') == ['x[1].png']


@pytest.mark.parametrize('folder', ['[2024]', 'a*', '[1]/[2]'])
def test_pattern_in_a_folder_whose_name_looks_like_one(tmp_path, folder):
    (tmp_path / folder / 'sub').mkdir(parents=True)
    for name in ('x.png', 'sub/y.png'):
        (tmp_path / folder / name).touch()
    assert names(f'{tmp_path}/{folder}/*.png') == ['x.png']
    assert names(f'{tmp_path}/{folder}/**/*.png') == ['sub/y.png', 'x.png']


def test_pattern_in_a_working_folder_whose_name_looks_like_one(
    tmp_path, monkeypatch
):
    (tmp_path / '[2024]').mkdir()
    (tmp_path / '[2024]/x.png').touch()
    monkeypatch.chdir(tmp_path / '[2024]')
    assert names('*.png') == ['x.png']


@pytest.mark.parametrize('pattern', ['', '/**/*.jpg'])
@pytest.mark.parametrize('to_results', ['in/link', 'in'])
def test_results_behind_a_link_are_not_taken(tmp_path, pattern, to_results):
    """in/link leads to the results, or the results are named by a link."""
    results = tmp_path / 'in' / 'link'
    if to_results == 'in/link':
        (tmp_path / 'real').mkdir()
        (tmp_path / 'in').mkdir()
        results.symlink_to(tmp_path / 'real')
        exclude = tmp_path / 'real'
    else:
        results.mkdir(parents=True)
        (tmp_path / 'other').symlink_to(tmp_path / 'in')
        exclude = tmp_path / 'other' / 'link'
    (tmp_path / 'in/x.jpg').touch()
    (results / 'vis').mkdir()
    for picture in ('vis/x.jpg.jpg', 'y.jpg'):
        (results / picture).touch()
    inputs = f'{tmp_path}/in{pattern}'
    assert names(inputs, recursive=True, exclude=exclude) == ['x.jpg']


@pytest.mark.parametrize('missing', ['empty', 'nowhere', '*.jpg'])
def test_what_does_not_exist_is_named(tmp_path, missing):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        expand_inputs(str(tmp_path / missing))
    assert missing in str(caught.value)


def test_other_inputs_are_refused():
    with pytest.raises(TypeError, match='got int'):
        expand_inputs([3])
