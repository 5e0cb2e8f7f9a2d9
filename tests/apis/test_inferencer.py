"""Inference as a whole: the same results however images come in."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from pycocotools.coco import COCO

from mmdet_ebm.apis import EnergyDetInferencer, to_instances

from .conftest import picture, save_checkpoint, shrunk_bccd, write
from .test_inputs import damaged, write_video


def assert_equal(first, second, atol=1e-3):
    assert first['labels'] == second['labels']
    for field in ('scores', 'bboxes', 'logdensities', 'initial_bboxes'):
        np.testing.assert_allclose(first[field], second[field], atol=atol)


@pytest.fixture
def forwards(inferencer, monkeypatch):
    """Number of images of each forward pass from here on."""
    sizes = []
    test_step = inferencer.model.test_step

    def counting(data):
        sizes.append(len(data['inputs']))
        return test_step(data)

    monkeypatch.setattr(inferencer.model, 'test_step', counting)
    return sizes


@pytest.fixture
def folder(tmp_path):
    """a/x.jpg, b/x.jpg, x.png of two sizes, and one that is damaged."""
    write(tmp_path / 'in/a/x.jpg', seed=1)
    write(tmp_path / 'in/b/x.jpg', seed=2, height=64, width=48)
    write(tmp_path / 'in/x.jpg', seed=3)
    write(tmp_path / 'in/x.png', seed=4)
    (tmp_path / 'in/broken.jpg').write_text('not an image')
    return tmp_path / 'in'


NAMES = ['a/x.jpg', 'b/x.jpg', 'broken.jpg', 'x.jpg', 'x.png']


def test_predictions_are_in_mmdets_form_with_ours_beside(inferencer):
    result = inferencer(picture())
    (prediction,) = result['predictions']
    assert result['visualization'] == []
    count = len(prediction['labels'])
    assert count > 0
    assert list(prediction) == [
        'labels',
        'scores',
        'bboxes',
        'logdensities',
        'initial_bboxes',
    ]
    assert all(len(values) == count for values in prediction.values())
    boxes = np.array(prediction['bboxes'])
    assert (boxes >= 0).all() and (boxes <= (64, 48, 64, 48)).all()
    assert np.abs(boxes - prediction['initial_bboxes']).max() > 0.1


def test_uncertainties_of_a_model_are_passed_on(
    inferencer, monkeypatch, tmp_path
):
    test_step = inferencer.model.test_step

    def with_uncertainty(data):
        samples = test_step(data)
        for sample in samples:
            count = len(sample.pred_instances)
            sample.pred_instances.box_std = torch.full((count, 4), 0.5)
            sample.pred_instances.box_std[1] = torch.nan  # as of a tiny box
            sample.pred_instances.box_logprobs = torch.ones(count)
        return samples

    monkeypatch.setattr(inferencer.model, 'test_step', with_uncertainty)
    (prediction,) = inferencer(picture(), out_dir=tmp_path)['predictions']
    assert prediction['box_std'][:2] == [[0.5] * 4, [None] * 4]
    assert prediction['box_logprobs'][0] == 1.0
    instances = to_instances(prediction)
    assert (
        instances.box_std[1].isnan().all() and instances.box_std[0, 0] == 0.5
    )
    annotation = COCO(str(tmp_path / 'predictions.json')).anns[1]
    assert (annotation['box_std'], annotation['box_logprob']) == ([0.5] * 4, 1)


def test_batches_give_what_single_images_give(inferencer, folder, forwards):
    single = inferencer(folder, recursive=True)
    assert forwards == [1] * 4
    forwards.clear()
    batched = inferencer(folder, recursive=True, batch_size=3)
    # The one of another shape is on its own: padding would change it.
    assert sorted(forwards) == [1, 3]
    assert single['names'] == batched['names'] == NAMES
    for one, other in zip(single['predictions'], batched['predictions']):
        assert (one is None) == (other is None)
        if one is not None:
            assert_equal(one, other)


def test_paths_lists_and_arrays_give_the_same(inferencer, folder):
    path = folder / 'x.png'
    image = cv2.imread(str(path))
    (by_path,) = inferencer(str(path))['predictions']
    in_list = inferencer([path, image], return_vis=True)
    for prediction in in_list['predictions']:
        assert_equal(prediction, by_path, atol=0)
    first, second = in_list['visualization']
    assert np.array_equal(first, second) and first.shape[2] == 3
    (sample,) = inferencer(path, return_datasamples=True)['predictions']
    assert (sample.ori_shape, sample.img_path) == ((48, 64), str(path))
    np.testing.assert_array_equal(
        sample.pred_instances.bboxes, np.float32(by_path['bboxes'])
    )


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


def test_page_shows_all_pictures_and_what_is_missing(inferencer, tmp_path):
    write(tmp_path / 'in/a & b.png')
    (tmp_path / 'in/<odd>.jpg').write_text('not an image')
    inferencer(tmp_path / 'in', out_dir=tmp_path / 'out', compare=True)
    page = (tmp_path / 'out/index.html').read_text()
    assert 'src="vis/a%20%26%20b.png.jpg"' in page and 'a &amp; b.png' in page
    assert '&lt;odd&gt;.jpg: not an image' in page and 'dashed' in page


def test_every_damaged_file_is_reported(inferencer, tmp_path):
    reasons = {
        path.name: reason for path, reason in damaged(tmp_path / 'damaged')
    }
    write(tmp_path / 'damaged/good.png')
    inferencer(tmp_path / 'damaged')
    assert set(inferencer.summary.skipped) == set(reasons)
    assert inferencer.summary.done == 1


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
    write(folder / 'x.png', seed=9)
    write(folder / 'broken.jpg', seed=5)
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


def test_pictures_follow_their_settings_without_computing(
    inferencer, folder, tmp_path, forwards
):
    def pictures(**options):
        inferencer(folder, recursive=True, out_dir=tmp_path / 'out', **options)
        return {
            path: path.read_bytes()
            for path in (tmp_path / 'out/vis').rglob('*.jpg')
        }

    assert pictures(no_save_vis=True) == {}
    forwards.clear()
    plain = pictures(pred_score_thr=0.0)
    assert len(plain) == 4
    compared = pictures(pred_score_thr=0.0, compare=True)
    assert all(plain[name] != compared[name] for name in plain)
    assert '(4 by an earlier run, 4 of them drawn anew)' in str(
        inferencer.summary
    )
    assert pictures(pred_score_thr=0.0) == plain
    (tmp_path / 'out/vis/x.png.jpg').unlink()
    assert pictures(pred_score_thr=0.0) == plain
    assert not forwards


def test_results_of_another_model_are_not_mixed(
    inferencer, energy_files, tmp_path
):
    path, out = write(tmp_path / 'x.png'), tmp_path / 'out'
    inferencer(path, out_dir=out)
    config, checkpoint = energy_files
    other = EnergyDetInferencer(
        config,
        checkpoint,
        device='cpu',
        show_progress=False,
        cfg_options={'model.roi_head.refiner.num_steps': 3},
    )
    with pytest.raises(ValueError, match='num_steps was not set and is 3'):
        other(path, out_dir=out)
    other(path, out_dir=out, overwrite=True)
    with pytest.raises(ValueError, match='other settings'):
        inferencer(path, out_dir=out)


def test_another_checkpoint_is_noticed(inferencer, energy_files, tmp_path):
    path, out = write(tmp_path / 'x.png'), tmp_path / 'out'
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
        inferencer(picture(seed=i), out_dir=tmp_path)['names'][0]
        for i in range(2)
    ]
    assert len({*names}) == 2
    assert len(list((tmp_path / 'preds').iterdir())) == 2


def test_video_becomes_a_video_and_continues(inferencer, tmp_path, forwards):
    clip = write_video(tmp_path / 'clip.mp4', 5)

    def run(**options):
        forwards.clear()
        return inferencer(
            clip, batch_size=2, out_dir=tmp_path / 'out', **options
        )

    result = run()
    assert forwards == [2, 2, 1]
    assert result['names'] == [f'clip.mp4/{i:06d}' for i in range(5)]
    written = cv2.VideoCapture(str(tmp_path / 'out/vis/clip.mp4.mp4'))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert written.get(cv2.CAP_PROP_FPS) == 10
    assert run()['predictions'] == result['predictions'] and not forwards
    # Cut off: frames are kept, the video is written anew.
    (tmp_path / 'out/preds/clip.mp4/000003.json').unlink()
    (tmp_path / 'out/vis/clip.mp4.mp4').unlink()
    for one, other in zip(run()['predictions'], result['predictions']):
        assert_equal(one, other)
    assert forwards == [1]
    assert (
        cv2.VideoCapture(str(tmp_path / 'out/vis/clip.mp4.mp4')).get(
            cv2.CAP_PROP_FRAME_COUNT
        )
        == 5
    )


def test_damaged_video_is_named_and_its_frames_are_used(inferencer, tmp_path):
    data = write_video(tmp_path / 'clip.mp4', 3).read_bytes()
    (tmp_path / 'clip.mp4').write_bytes(data[: len(data) // 2])
    result = inferencer(tmp_path / 'clip.mp4', out_dir=tmp_path / 'out')
    assert list(result['skipped']) == ['clip.mp4']


def test_out_of_memory_costs_images_not_the_run(inferencer, monkeypatch):
    test_step = inferencer.model.test_step

    def little_memory(data):
        if len(data['inputs']) > 1 or data['inputs'][0].shape[-1] > 90:
            raise RuntimeError(
                'DefaultCPUAllocator: not enough memory: you tried to allocate'
            )
        return test_step(data)

    monkeypatch.setattr(inferencer.model, 'test_step', little_memory)
    upright, flat = picture(64, 48), picture(48, 64)
    result = inferencer([upright, upright, flat], batch_size=2)
    assert [p is None for p in result['predictions']] == [False, False, True]
    (reason,) = result['skipped'].values()
    assert 'out of memory at 96 x 72' in reason


def test_errors_of_the_model_are_not_taken_for_bad_images(
    inferencer, monkeypatch
):
    def broken(data):
        raise RuntimeError('shapes cannot be multiplied')

    monkeypatch.setattr(inferencer.model, 'test_step', broken)
    with pytest.raises(RuntimeError, match='multiplied'):
        inferencer(picture())


def test_config_comes_from_the_checkpoint_without_one(
    energy_files, inferencer
):
    alone = EnergyDetInferencer(
        weights=energy_files[1], device='cpu', show_progress=False
    )
    assert_equal(
        alone(picture())['predictions'][0],
        inferencer(picture())['predictions'][0],
        atol=0,
    )


def test_class_names_come_from_the_config_where_weights_have_none(
    energy_files, tmp_path
):
    config, checkpoint = energy_files
    bare = torch.load(checkpoint, weights_only=True)['state_dict']
    torch.save(bare, tmp_path / 'bare.pth')
    inferencer = EnergyDetInferencer(
        config, tmp_path / 'bare.pth', device='cpu'
    )
    assert inferencer.classes == tuple(
        Config.fromfile(config).metainfo.classes
    )


def test_plain_config_is_refused(tmp_path):
    config = shrunk_bccd(tmp_path, '')
    checkpoint = save_checkpoint(config, tmp_path / 'plain.pth')
    with pytest.raises(ValueError, match='no energy model'):
        EnergyDetInferencer(config, checkpoint)


def test_own_pictures_are_not_taken_for_inputs(inferencer, folder):
    for _ in range(2):
        result = inferencer(folder, recursive=True, out_dir=folder / 'out')
        assert result['names'] == NAMES


def test_device_that_is_not_there_is_named(energy_files):
    for device in ('cuda:99', 'abacus'):
        with pytest.raises(ValueError, match=f'cannot compute on {device}'):
            EnergyDetInferencer(*energy_files, device=device)


def test_uncertainties_do_not_depend_on_the_batch(energy_files):
    """They come from samples, which must not be the luck of the draw."""
    inferencer = EnergyDetInferencer(
        *energy_files,
        device='cpu',
        show_progress=False,
        cfg_options={'model.roi_head.refinement.uncertainty': True},
    )
    images = [picture(seed=i) for i in range(3)]
    single = inferencer(images)['predictions']
    batched = inferencer(images, batch_size=3)['predictions']
    for one, other in zip(single, batched):
        assert_equal(one, other)
        for field in ('box_std', 'box_logprobs'):
            np.testing.assert_allclose(
                np.array(one[field], float),
                np.array(other[field], float),
                rtol=1e-2,
            )


def test_pipeline_must_begin_with_an_image_file(energy_files):
    with pytest.raises(ValueError, match='not LoadImageFromNDArray'):
        EnergyDetInferencer(
            *energy_files,
            device='cpu',
            cfg_options={
                'test_dataloader.dataset.pipeline.0.type': (
                    'LoadImageFromNDArray'
                )
            },
        )
