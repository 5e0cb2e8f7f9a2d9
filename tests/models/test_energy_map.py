"""Maps hold what f says there; the path is the ascent's."""

import copy

import pytest
import torch

from mmdet_ebm.models import Boxes, Refinement
from mmdet_ebm.models.energy_map import compute_energy_map
from mmdet_ebm.models.surface_tap import SurfaceTap, network_boxes

from ..conftest import batch, build, energy_model_cfg


@pytest.fixture
def detector():
    model = build(energy_model_cfg()).eval()
    torch.nn.init.normal_(model.roi_head.refiner.head.fc_logdensity.weight)
    torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=0.2)
    model.roi_head.test_cfg.update(score_thr=0.2, max_per_img=5)
    model.roi_head.refiner.step_length = (0.01, 0.01)
    model.roi_head.refiner.num_steps = 6
    return model


def look(model, image=1, detection=2, **stages):
    model.roi_head.refinement = Refinement(**stages)
    inputs, samples = batch()
    with torch.no_grad(), SurfaceTap(model.roi_head.refiner).running() as tap:
        samples = model.predict(inputs, copy.deepcopy(samples))
        energy = compute_energy_map(
            model.roi_head.refiner,
            tap.surface,
            samples,
            image,
            detection,
            resolution=9,
        )
        return energy, samples, tap.surface


def test_the_path_leads_from_the_initial_to_the_refined_box(detector):
    energy, samples, _ = look(detector)
    found = samples[1].pred_instances
    torch.testing.assert_close(energy.corners[0], found.initial_bboxes[2])
    torch.testing.assert_close(energy.corners[-1], found.bboxes[2])
    assert len(energy.path) == 7 and (energy.path[-1] == 0).all()
    assert energy.path[0].abs().max() > 1e-3
    # Steps that do not rise are not taken.
    assert (energy.logdensity.diff() >= -1e-4).all()
    assert energy.logdensity[-1] > energy.logdensity[0]
    torch.testing.assert_close(
        energy.logdensity[-1], found.logdensities[2], rtol=1e-3, atol=1e-3
    )
    assert detector.roi_head.refiner.num_steps == 6


def test_maps_are_differences_of_f_at_moved_and_resized_boxes(detector):
    energy, samples, surface = look(detector)
    refiner = detector.roi_head.refiner
    boxes, _ = network_boxes(samples)
    x1, y1, x2, y2 = boxes.corners[boxes.counts[0] + 2].tolist()
    width, height = x2 - x1, y2 - y1

    def f(cx, cy, w, h):
        corners = torch.tensor(
            [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]]
        )
        one = Boxes(
            corners,
            samples[1].pred_instances.labels[2:3],
            torch.tensor([1]),
            (0, 1),
        )
        return refiner.logdensity(surface, one)[0]

    middle = f((x1 + x2) / 2, (y1 + y2) / 2, width, height)
    row, column = 7, 1
    moved = f(
        (x1 + x2) / 2 + float(energy.shift[column]) * width,
        (y1 + y2) / 2 + float(energy.shift[row]) * height,
        width,
        height,
    )
    resized = f(
        (x1 + x2) / 2,
        (y1 + y2) / 2,
        width * float(energy.log_size[column].exp()),
        height * float(energy.log_size[row].exp()),
    )
    for values, expected in (
        (energy.centre_map, moved - middle),
        (energy.size_map, resized - middle),
    ):
        torch.testing.assert_close(
            values[row, column] - values[4, 4], expected, rtol=1e-3, atol=1e-3
        )


def test_the_middle_of_the_maps_is_the_normalised_log_density(detector):
    energy, samples, _ = look(detector, uncertainty=True)
    found = samples[1].pred_instances
    for values in (energy.centre_map, energy.size_map):
        torch.testing.assert_close(
            values[4, 4], found.box_logprobs[2], rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(
        energy.std, found.box_std[2], rtol=1e-3, atol=1e-3
    )


def test_without_an_ascent_the_path_is_one_point(detector):
    energy, samples, _ = look(detector, ascent=False)
    assert energy.path.tolist() == [[0, 0, 0, 0]]
    torch.testing.assert_close(
        energy.corners[0], samples[1].pred_instances.bboxes[2]
    )


def test_what_is_not_there_is_refused(detector):
    with pytest.raises(IndexError, match='no detection 5: the image has 5'):
        look(detector, detection=5)
    with pytest.raises(ValueError, match='switch a stage'):
        look(detector, energy_nms=False, ascent=False)


def test_the_tap_leaves_nothing_behind(detector):
    refiner = detector.roi_head.refiner
    before = refiner.surface
    with SurfaceTap(refiner).running():
        assert refiner.surface != before
    assert refiner.surface == before and 'surface' not in vars(refiner)
