"""A run writes its results to a folder, and the next run continues."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmdet_ebm.apis import EnergyDetInferencer

from ..helpers import random_image, save_checkpoint, write_image

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
