"""Which files a run over images takes."""

import pytest

from mmdet_ebm.apis import list_images


def test_image_lists(tmp_path):
    (tmp_path / 'sub').mkdir()
    for name in ('b.png', 'a.JPG', 'notes.txt', 'sub/c.png'):
        (tmp_path / name).touch()
    names = [path.name for path in list_images(tmp_path)]
    assert names == ['a.JPG', 'b.png']
    assert len(list_images(tmp_path, recursive=True)) == 3
    assert list_images([tmp_path / 'notes.txt', tmp_path / 'sub']) == [
        tmp_path / 'notes.txt', tmp_path / 'sub/c.png']
    (tmp_path / 'none').mkdir()
    for missing in ('none', 'nowhere'):
        with pytest.raises(FileNotFoundError, match=missing):
            list_images(tmp_path / missing)
