"""Files are complete or not there."""

import json

import pytest

from mmdet_ebm.files import write_json, write_text


def test_a_file_is_written_and_its_folder_made(tmp_path):
    path = tmp_path / 'new' / 'file.json'
    write_json(path, dict(a=[1, 2.5]))
    assert json.loads(path.read_text()) == dict(a=[1, 2.5])
    write_text(str(path), 'other')
    assert path.read_text() == 'other'


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file.json'
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    with pytest.raises(TypeError):
        write_text(path, 5)
    assert path.read_text() == '1'
    write_json(path, 2)
    assert path.read_text() == '2'
    assert [each.name for each in tmp_path.iterdir()] == ['file.json']


def test_a_part_that_an_interrupted_writer_left_does_not_matter(tmp_path):
    (tmp_path / 'file.json.part').write_text('half')
    write_json(tmp_path / 'file.json', 3)
    assert (tmp_path / 'file.json').read_text() == '3'
