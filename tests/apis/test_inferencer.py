"""Inference as a whole: the same results however images come in."""

import inspect

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.visualization import Visualizer
from pycocotools.coco import COCO

from mmdet_ebm.apis import EnergyDetInferencer, to_instances

from ..helpers import (
    assert_same_detections,
    random_image,
    save_checkpoint,
    shrunk_bccd,
    write_damaged_files,
    write_image,
    write_video,
)

NAMES = ['a/x.jpg', 'b/x.jpg', 'broken.jpg', 'x.jpg', 'x.png']


def test_predictions_are_in_mmdets_form_with_ours_beside(inferencer):
    result = inferencer(random_image())
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
    (prediction,) = inferencer(random_image(), out_dir=tmp_path)['predictions']
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
            assert_same_detections(one, other)


def test_paths_lists_and_arrays_give_the_same(inferencer, folder):
    path = folder / 'x.png'
    image = cv2.imread(str(path))
    (by_path,) = inferencer(str(path))['predictions']
    in_list = inferencer([path, image], return_vis=True)
    for prediction in in_list['predictions']:
        assert_same_detections(prediction, by_path, atol=0)
    first, second = in_list['visualization']
    assert np.array_equal(first, second) and first.shape[2] == 3
    (sample,) = inferencer(path, return_datasamples=True)['predictions']
    assert (sample.ori_shape, sample.img_path) == ((48, 64), str(path))
    np.testing.assert_array_equal(
        sample.pred_instances.bboxes, np.float32(by_path['bboxes'])
    )


def test_every_damaged_file_is_reported(inferencer, tmp_path):
    reasons = {
        path.name: reason
        for path, reason in write_damaged_files(tmp_path / 'damaged')
    }
    write_image(tmp_path / 'damaged/good.png')
    inferencer(tmp_path / 'damaged')
    assert set(inferencer.summary.skipped) == set(reasons)
    assert inferencer.summary.done == 1


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
    upright, flat = random_image(64, 48), random_image(48, 64)
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
        inferencer(random_image())


def test_plain_config_is_refused(tmp_path):
    config = shrunk_bccd(tmp_path, '')
    checkpoint = save_checkpoint(config, tmp_path / 'plain.pth')
    with pytest.raises(ValueError, match='no energy model'):
        EnergyDetInferencer(config, checkpoint)


def test_uncertainties_do_not_depend_on_the_batch(energy_files):
    """They come from samples, which must not be the luck of the draw."""
    inferencer = EnergyDetInferencer(
        *energy_files,
        device='cpu',
        show_progress=False,
        cfg_options={'model.refinement.uncertainty': True},
    )
    images = [random_image(seed=i) for i in range(3)]
    single = inferencer(images)['predictions']
    batched = inferencer(images, batch_size=3)['predictions']
    for one, other in zip(single, batched):
        assert_same_detections(one, other)
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


def test_arguments_of_mmdets_inferencer_are_known_or_refused(inferencer):
    ours, theirs = (
        list(inspect.signature(each.__call__).parameters)
        for each in (EnergyDetInferencer, DetInferencer)
    )
    # In the same order, but for **kwargs, which would hide a mistake.
    assert ours[: len(theirs) - 1] == theirs[:-1]
    for name, value in (
        ('texts', 'a cat'),
        ('stuff_texts', 'sky'),
        ('custom_entities', True),
        ('tokens_positive', 1),
    ):
        with pytest.raises(ValueError, match=f'{name}: only for models'):
            inferencer(random_image(), **{name: value})


def test_pictures_are_shown_one_after_the_other(inferencer, monkeypatch):
    shown = []
    monkeypatch.setattr(
        Visualizer, 'show', lambda self, *arguments: shown.append(arguments)
    )
    images = [random_image(seed=seed) for seed in range(2)]
    result = inferencer(images, show=True, wait_time=0.5)
    assert result['visualization'] == []
    assert [name for _, name, _ in shown] == result['names']
    assert all(seconds == 0.5 for *_, seconds in shown)


def test_pictures_without_boxes_are_the_images(inferencer):
    (bare,) = inferencer(
        random_image(), return_vis=True, draw_pred=False, pred_score_thr=0.0
    )['visualization']
    (drawn,) = inferencer(random_image(), return_vis=True, pred_score_thr=0.0)[
        'visualization'
    ]
    (empty,) = inferencer(random_image(), return_vis=True, pred_score_thr=1.1)[
        'visualization'
    ]
    assert (bare == empty).all() and (bare != drawn).any()
