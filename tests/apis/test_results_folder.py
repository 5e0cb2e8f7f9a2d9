"""A run writes its results to a folder, and the next run continues."""

import errno
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from mmdet_ebm.apis import EnergyDetInferencer
from mmdet_ebm.apis.inputs import Source
from mmdet_ebm.apis.results_folder import (
    ResultsFolder,
    SavedResults,
    write_file,
    write_whole,
)

from ..helpers import (
    random_image,
    save_checkpoint,
    write_image,
    write_results,
)

NAMES = ['a/x.jpg', 'b/x.jpg', 'broken.jpg', 'x.jpg', 'x.png']


def test_results_mirror_the_tree_and_damage_is_named(
    inferencer, folder, tmp_path
):
    out = tmp_path / 'out'
    result = inferencer(folder, recursive=True, out_dir=out)
    good = [name for name in NAMES if name != 'broken.jpg']
    for name, prediction in zip(NAMES, result['predictions']):
        json_file = out / 'preds' / f'{name}.json'
        if prediction is None:
            assert name == 'broken.jpg' and not json_file.exists()
            continue
        assert json.loads(json_file.read_text()) == prediction
        assert cv2.imread(str(out / 'vis' / f'{name}.jpg')) is not None
    assert list(result['skipped']) == ['broken.jpg']
    coco = COCO(str(out / 'predictions.json'))
    assert [image['file_name'] for image in coco.dataset['images']] == good
    assert (coco.imgs[1]['width'], coco.imgs[1]['height']) == (48, 64)
    first = coco.dataset['annotations'][0]
    x, y, width, height = first['bbox']
    np.testing.assert_allclose(
        [x, y, x + width, y + height], result['predictions'][0]['bboxes'][0]
    )
    assert {'score', 'logdensity', 'initial_bbox'} <= set(first)


def test_the_folder_may_be_relative(inferencer, tmp_path, monkeypatch):
    write_image(tmp_path / 'x.png')
    monkeypatch.chdir(tmp_path)
    inferencer('x.png', out_dir='out')
    written = [path.relative_to('out') for path in Path('out').rglob('*.*')]
    assert sorted(map(str, written)) == [
        'images.jsonl',
        'index.html',
        'predictions.json',
        'preds/x.png.json',
        'settings.json',
        'vis/x.png.jpg',
    ]


def test_second_run_computes_only_what_is_new_or_changed(
    inferencer, folder, tmp_path, forwards
):
    def run(**options):
        forwards.clear()
        return inferencer(
            folder, recursive=True, out_dir=tmp_path / 'out', **options
        )

    first = run()
    assert run()['predictions'] == first['predictions'] and not forwards
    assert inferencer.summary.kept == 4
    write_image(folder / 'x.png', seed=9)
    write_image(folder / 'broken.jpg', seed=5)
    again = run()
    assert forwards == [1, 1] and not again['skipped']
    assert again['predictions'][4] != first['predictions'][4]
    # A run that was cut off while it noted an image.
    ledger = tmp_path / 'out/images.jsonl'
    ledger.write_text(ledger.read_text()[:-20])
    run()
    assert len(forwards) == 1
    run(overwrite=True)
    assert len(forwards) == 5


def test_results_of_another_model_are_not_mixed(
    inferencer, energy_files, tmp_path
):
    path, out = write_image(tmp_path / 'x.png'), tmp_path / 'out'
    inferencer(path, out_dir=out)
    config, checkpoint = energy_files
    other = EnergyDetInferencer(
        config,
        checkpoint,
        device='cpu',
        show_progress=False,
        cfg_options={'model.energy_model.ascent.num_steps': 3},
    )
    with pytest.raises(ValueError, match='num_steps was not set and is 3'):
        other(path, out_dir=out)
    other(path, out_dir=out, overwrite=True)
    with pytest.raises(ValueError, match='other settings'):
        inferencer(path, out_dir=out)


def test_another_checkpoint_is_noticed(inferencer, energy_files, tmp_path):
    path, out = write_image(tmp_path / 'x.png'), tmp_path / 'out'
    inferencer(path, out_dir=out)
    config, _ = energy_files
    other = EnergyDetInferencer(
        config,
        save_checkpoint(config, tmp_path / 'other.pth', seed=1),
        device='cpu',
        show_progress=False,
    )
    with pytest.raises(ValueError, match='checkpoint was .* and is'):
        other(path, out_dir=out)


def test_other_files_of_the_same_name_are_not_written_over(
    inferencer, folder, tmp_path
):
    inferencer(folder / 'a', out_dir=tmp_path / 'out')
    with pytest.raises(
        ValueError,
        match=r'results of .*a/x.jpg under the '
        'name x.jpg',
    ):
        inferencer(folder / 'b', out_dir=tmp_path / 'out')


def test_arrays_of_two_calls_do_not_meet(inferencer, tmp_path):
    names = [
        inferencer(random_image(seed=i), out_dir=tmp_path)['names'][0]
        for i in range(2)
    ]
    assert len({*names}) == 2
    assert len(list((tmp_path / 'preds').iterdir())) == 2


def test_own_pictures_are_not_taken_for_inputs(inferencer, folder):
    for _ in range(2):
        result = inferencer(folder, recursive=True, out_dir=folder / 'out')
        assert result['names'] == NAMES


def record(name, **changes):
    """A line of the ledger."""
    details = dict(size=[4, 3])
    return json.dumps(
        dict(dict(name=name, path=None, signature='s', details=details))
        | changes
    )


@pytest.mark.parametrize('link', [False, True])
def test_overwriting_removes_nothing_outside(tmp_path, link):
    out, other = tmp_path / 'out', tmp_path / 'other'
    (out / 'preds').mkdir(parents=True)
    other.mkdir()
    names = [f'{other}/x', '../../other/x', 'a/../../../other/x']
    if link:
        (out / 'preds/link').symlink_to(other)
        names = ['link/x']
    (other / 'x.json').touch()
    (out / 'images.jsonl').write_text('\n'.join(map(record, names)) + '\n')
    ResultsFolder(out, {}, overwrite=True)
    assert (other / 'x.json').exists()


def test_damaged_lines_of_the_ledger_are_passed_over(tmp_path):
    (tmp_path / 'images.jsonl').write_text(
        '\n'.join(
            [
                '5',
                'null',
                '[]',
                '{"name": 3}',
                '[' * 10000,
                '\0\0',
                record('nul\0'),
                record('no size', details={}) + 'x',
                record('bad size', details=dict(size='ab')),
                record('no signature', signature=None),
                record('good'),
                record('cut')[:-9],
            ]
        )
    )
    for _ in range(2):
        folder = ResultsFolder(tmp_path, {})
        folder.save('good', PREDICTION)
        assert folder.finished('good', 's') == PREDICTION
        assert folder.details('good') == dict(size=[4, 3])
        assert list(folder._records)[0] == 'good'
        # After the line that was cut, the next one is whole.
        folder.finish('new', Source('new', Path('new')), 's', {})
    assert list(folder._records) == ['good', 'new']


PREDICTION = dict(labels=[1], scores=[0.5], bboxes=[[0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    'written',
    [
        5,
        None,
        {},
        dict(PREDICTION, scores=[]),
        dict(PREDICTION, bboxes=[[None] * 4]),
        dict(PREDICTION, bboxes=[['a'] * 4]),
        dict(PREDICTION, extra=3),
    ],
)
def test_damaged_predictions_are_computed_again(tmp_path, written):
    folder = ResultsFolder(tmp_path, {})
    folder.finish('x', Source('x', Path('x')), 's', dict(size=[4, 3]))
    folder.save('x', PREDICTION)
    assert folder.finished('x', 's') == PREDICTION
    folder.save('x', written)
    assert folder.finished('x', 's') is None


@pytest.mark.parametrize('content', ['', '{"a": 1', '5', '[' * 10000])
def test_damaged_settings_are_refused(tmp_path, content):
    (tmp_path / 'images.jsonl').write_text(record('x') + '\n')
    (tmp_path / 'settings.json').write_text(content)
    with pytest.raises(ValueError, match='other settings.*overwrite'):
        ResultsFolder(tmp_path, dict(a=1))


def test_processes_share_a_folder(tmp_path):
    """One begins to write a file that another is just writing."""
    path = tmp_path / 'x.json'
    with write_whole(path) as one:
        with write_whole(path) as other:
            other.write('other')
        one.write('one')
    assert path.read_text() == 'one' and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / 'x.json'
    write_file(path, 'old')

    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('boltons.fileutils.os.fsync', full)
    with pytest.raises(OSError, match='No space'):
        write_file(path, 'new')
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_names_that_have_no_place_are_skipped_and_all_others_done(
    inferencer, tmp_path
):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    long = 'x' * 248 + '.jpg'  # with .json it is over the 255 bytes of a name
    not_text = os.fsdecode(b'\xff.jpg')
    data = write_image(folder / 'a.jpg').read_bytes()
    for name in (long, not_text, 'x.jpg', 'x.jpg.json/y.jpg', 'z.jpg'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    inferencer(folder, recursive=True, out_dir=out)
    summary = inferencer.summary
    assert set(summary.skipped) == {long, 'x.jpg.json/y.jpg'}
    assert summary.done == 4 and 'x.jpg.json/y.jpg' in str(summary)
    str(summary).encode()
    assert (out / 'preds' / f'{not_text}.json').exists()
    assert 'src="vis/%FF.jpg.jpg"' in (out / 'index.html').read_text()


def test_pictures_that_jpeg_cannot_hold_are_named(
    inferencer, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        'mmdet_ebm.apis.pictures.draw_refinement',
        lambda *_, **__: np.zeros((1, 70000, 3), np.uint8),
    )
    inferencer(random_image(), out_dir=tmp_path)
    (reason,) = inferencer.summary.skipped.values()
    assert '70000 x 1 pixels; run without pictures' in reason


@pytest.mark.parametrize('field', ['bboxes', 'scores'])
def test_boxes_that_are_not_finite_are_named(
    inferencer, tmp_path, monkeypatch, field
):
    test_step = inferencer.model.test_step

    def spoilt(data):
        samples = test_step(data)
        samples[0].pred_instances[field][0] = torch.nan
        return samples

    monkeypatch.setattr(inferencer.model, 'test_step', spoilt)
    result = inferencer(random_image(), out_dir=tmp_path)
    assert result['predictions'] == [None]
    assert 'not finite' in ''.join(result['skipped'].values())
    assert not list(tmp_path.rglob('preds/*'))


def test_saved_results_are_those_of_the_run(inferencer, tmp_path):
    path = write_image(tmp_path / 'in/x.png', height=64, width=48)
    result = inferencer(path, out_dir=tmp_path / 'out', no_save_vis=True)
    saved = SavedResults(tmp_path / 'out')
    assert saved.classes == inferencer.classes
    (image,) = saved
    assert (image.name, image.path) == ('x.png', str(path))
    assert (image.width, image.height, image.is_file) == (48, 64, True)
    assert image.prediction == result['predictions'][0]


def test_saved_results_pass_over_what_is_damaged_and_change_nothing(tmp_path):
    folder = write_results(tmp_path)
    (folder / 'preds/empty.png.json').write_text('{')
    ledger = folder / 'images.jsonl'
    ledger.write_text(ledger.read_text() + '{"name": "cut')
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    assert [(i.name, i.is_file) for i in SavedResults(folder)] == [
        ('00000000', False),
        ('clip.mp4/000000', False),
        ('x & y/cat.jpg', True),
    ]
    after = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    assert after == before


def test_folders_without_saved_results_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'images\.jsonl'):
        SavedResults(tmp_path)
    folder = write_results(tmp_path)
    (folder / 'settings.json').write_text('{}')
    with pytest.raises(ValueError, match='list of classes'):
        SavedResults(folder)
    shutil.rmtree(folder / 'preds')
    with pytest.raises(ValueError, match='--no-save-pred'):
        SavedResults(folder)
