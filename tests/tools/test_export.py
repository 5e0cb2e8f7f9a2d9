"""The command that writes results for other tools."""

import csv
import json
import sys

import pytest

from ..helpers import run_tool, write_results

PREFIX = ('--image-prefix', 'https://example.org/')


@pytest.fixture
def export(monkeypatch, capsys, tmp_path):
    """Runs the tool; gives its exit status, what it wrote and what it says."""
    write_results(tmp_path / 'results')

    def run(name, *arguments, results=tmp_path / 'results'):
        out = tmp_path / 'out/file'
        with pytest.raises(SystemExit) as done:
            run_tool(
                monkeypatch,
                'export',
                *(results, '--format', name, '--out', out),
                *arguments,
            )
        said = capsys.readouterr()
        text = out.read_text() if out.exists() else None
        return done.value.code, text, said.out + said.err

    return run


def test_a_table_holds_all_detections(export):
    status, text, said = export('csv')
    assert status == 0 and '4 images and frames, detections: 2,' in said
    assert len(list(csv.reader(text.splitlines()))) == 3


def test_a_threshold_leaves_detections_out(export):
    _, text, said = export('csv', '--pred-score-thr', '0.5')
    assert 'detections: 1,' in said and 'dog' not in text


@pytest.mark.parametrize(
    'arguments', [('label-studio', *PREFIX), ('cvat',), ('fiftyone',)]
)
def test_frames_and_arrays_are_left_out_and_counted(export, arguments):
    status, text, said = export(*arguments)
    assert status == 0 and 'left out: 2 frames' in said
    assert 'empty.png' in text
    assert 'clip.mp4' not in text and '00000000' not in text


@pytest.mark.parametrize(
    'arguments, suffix',
    [
        (('label-studio', *PREFIX), '.interface.xml'),
        (('cvat',), '.labels.json'),
    ],
)
def test_what_an_annotation_tool_must_know_first_is_beside_the_file(
    export, tmp_path, arguments, suffix
):
    beside = tmp_path / f'out/file{suffix}'
    assert export(*arguments)[2].strip().endswith(f' in {beside}')
    assert 'dog' in beside.read_text()


def test_label_studio_gets_images_from_where_the_user_says(export):
    tasks = json.loads(export('label-studio', *PREFIX)[1])
    assert tasks[0]['data']['image'] == 'https://example.org/empty.png'


@pytest.mark.parametrize('arguments', [('label-studio',), ('csv', *PREFIX)])
def test_a_prefix_is_for_label_studio_and_needed_there(export, arguments):
    status, text, said = export(*arguments)
    assert status == 2 and 'go together' in said and text is None


def test_a_folder_without_results_is_named(export, tmp_path):
    message, text, _ = export('csv', results=tmp_path)
    assert message.startswith('error: no results in') and text is None


def test_a_missing_library_is_named_with_its_extra(export, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    message, text, _ = export('parquet')
    assert 'mmdet_ebm[parquet]' in message and text is None
