"""What is shown is what the model finds, and choices do not stay in it."""

import json

import mmcv
import numpy as np
import pytest
import torch

from mmdet_ebm.apis import EnergyDetInferencer
from mmdet_ebm.explorer.look import RANKINGS, Choices, Look

from ..helpers import random_image

IMAGE = mmcv.bgr2rgb(random_image())


@pytest.fixture
def look(model):
    return Look(model, IMAGE)


def test_detections_are_those_of_inference(look, energy_files):
    inferencer = EnergyDetInferencer(
        *energy_files, device='cpu', show_progress=False
    )
    (expected,) = inferencer(random_image())['predictions']
    rows = look.table()
    np.testing.assert_allclose(
        [row['bbox'] for row in rows], expected['bboxes'], atol=1e-3
    )
    np.testing.assert_allclose(
        [row['score'] for row in rows], expected['scores'], atol=1e-5
    )
    json.dumps(rows)


def test_neither_stages_nor_numbers_of_the_model_change(model):
    before = model.refinement, model.energy_model.density.numbers()
    Look(model, IMAGE, Choices(False, 0.5, RANKINGS[2]))
    assert before == (
        model.refinement,
        model.energy_model.density.numbers(),
    )


def test_numbers_come_back_after_an_error(model):
    density = model.energy_model.density
    before = density.numbers()
    with pytest.raises(ValueError, match='temperature'):
        with Choices(temperature=-1.0).applied(density):
            pass
    assert density.numbers() == before


def test_choices_have_an_effect(look):
    trusting = look.with_choices(temperature=0.05)
    wary = look.with_choices(temperature=1000.0)

    assert wary.table()[_calmest(wary)]['moved'] < 1e-3
    assert trusting.table()[_calmest(trusting)]['moved'] > 1e-3
    free = look.with_choices(prior=False)
    assert not torch.equal(free.instances.bboxes, look.instances.bboxes)
    # What the class score and the quality alone make, whatever was fitted.
    look.model.energy_model.density.set_numbers(object_bias=-3.0)
    by_quality = look.with_choices(ranking=RANKINGS[2]).table()
    for row in by_quality:
        assert row['score'] == pytest.approx(
            row['class_score'] * row['quality'], rel=1e-4
        )
    with pytest.raises(ValueError, match='ranking'):
        look.with_choices(ranking='best')


def test_a_point_belongs_to_the_smallest_box_around_it(look):
    look.instances.bboxes[:] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    look.instances.bboxes[0] = torch.tensor([10.0, 10.0, 40.0, 40.0])
    look.instances.bboxes[1] = torch.tensor([20.0, 20.0, 30.0, 30.0])
    assert look.at(25, 25) == 1
    assert look.at(12, 25) == 0
    assert look.at(50, 45) is None
    assert look.at(25, 25, score_thr=1.1) is None


def test_reading_the_placed_box_gives_what_the_detection_says(look):
    boxes = look.instances.bboxes[1][None]
    known = look.read(1, boxes)
    assert known.logprob[0] == pytest.approx(
        float(look.instances.box_logprobs[1]), abs=1e-2
    )
    # What the ascent climbed: f over the temperature, and the prior.
    numbers = look.model.energy_model.density.numbers()
    assert known.logdensity[0] / numbers['temperature'] == pytest.approx(
        float(look.instances.logdensities[1]), abs=0.1
    )
    assert 0 <= known.quality[0] <= 1


def test_far_boxes_are_less_likely_and_worse(look):
    look = look.with_choices(temperature=1000.0)  # f is random here
    relative = torch.zeros(3, 4)
    relative[1, 0], relative[2, 0] = 0.3, 2.0
    number = _calmest(look)
    known = look.read(number, look.moved(number, relative))
    assert known.logprob[0] > known.logprob[2]
    assert known.quality[0] > known.quality[1] > known.quality[2]


def _calmest(look):
    """The detection that moved least; others are cut by the border."""
    return min(look.table(), key=lambda row: row['moved'])['number']


def test_an_image_without_detections_is_no_error(model):
    before = model.detector.test_cfg
    roi = model.detector.roi_head.test_cfg
    threshold, roi.score_thr = roi.score_thr, 1.0
    try:
        look = Look(model, IMAGE)
    finally:
        roi.score_thr = threshold
    assert model.detector.test_cfg is before
    assert look.table() == [] and look.at(5, 5) is None
    with pytest.raises(IndexError, match='the image has 0'):
        look.energy_map(0)
