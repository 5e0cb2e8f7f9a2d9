"""Maps hold what f says there; the path is the ascent's."""

import pytest
import torch

from mmdet_ebm.core import FixedBoxDensity
from mmdet_ebm.models import Refinement
from mmdet_ebm.models.energy_map import compute_energy_map
from mmdet_ebm.ops import Boxes

from ..small_models import batch

IMAGE, DETECTION = 1, 2


@pytest.fixture
def model(detector):
    detector.detector.roi_head.test_cfg.max_per_img = 5
    detector.energy_model.ascent.step_length = (0.01, 0.01)
    detector.energy_model.ascent.num_steps = 6
    return detector.eval()


def look(model, detection=DETECTION, stages=None, **options):
    """The map of a detection, the detection itself and all that was found."""
    model.refinement = Refinement(**(stages or {}))
    with torch.no_grad():
        found = model.detect(*batch())
    energy = compute_energy_map(
        model.energy_model,
        found,
        IMAGE,
        detection,
        **{'resolution': 9, **options},
    )
    return energy, found.instances[IMAGE][detection], found


def test_the_path_leads_from_the_initial_to_the_refined_box(model):
    energy, one, _ = look(model)
    torch.testing.assert_close(energy.corners[:1], one.initial_bboxes)
    torch.testing.assert_close(
        energy.corners[-1:], one.bboxes, rtol=1e-5, atol=1e-4
    )
    assert len(energy.path) == 7 and (energy.path[-1] == 0).all()
    assert energy.path[0].abs().max() > 1e-3
    # Steps that do not rise are not taken.
    assert (energy.logdensity.diff() >= -1e-4).all()
    assert energy.logdensity[-1] > energy.logdensity[0]
    torch.testing.assert_close(
        energy.logdensity[-1:], one.logdensities, rtol=1e-3, atol=1e-3
    )
    assert model.energy_model.ascent.num_steps == 6


def test_the_path_ends_at_the_medians_of_the_sides(model):
    model.energy_model.density = FixedBoxDensity(side_std=0.1)
    energy, one, _ = look(model)
    assert len(energy.path) == 8
    torch.testing.assert_close(energy.corners[-1:], one.bboxes)
    assert (energy.corners[-2] != energy.corners[-1]).any()
    climbed, one, _ = look(model, stages=dict(medians=False))
    assert len(climbed.path) == 7
    torch.testing.assert_close(
        climbed.corners[-1:], one.bboxes, rtol=1e-5, atol=1e-4
    )


def test_maps_are_differences_of_f_at_moved_and_resized_boxes(model):
    energy, one, found = look(model)
    x1, y1, x2, y2 = one.bboxes[0].tolist()
    width, height = x2 - x1, y2 - y1

    def f(cx, cy, w, h):
        corners = torch.tensor(
            [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]]
        )
        table = Boxes(corners, one.labels, torch.tensor([IMAGE]), (0, 1))
        return model.energy_model.logdensity(found.pyramid, table)[0]

    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    middle = f(x, y, width, height)
    row, column = 7, 1
    moved = f(
        x + float(energy.shift[column]) * width,
        y + float(energy.shift[row]) * height,
        width,
        height,
    )
    resized = f(
        x,
        y,
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


def test_the_middle_of_the_maps_is_the_normalised_log_density(model):
    energy, one, _ = look(model, stages=dict(uncertainty=True))
    for values in (energy.centre_map, energy.size_map):
        torch.testing.assert_close(
            values[4, 4], one.box_logprobs[0], rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(
        energy.std, one.box_std[0], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize('energy_nms', [True, False])
def test_without_an_ascent_the_path_is_one_point(model, energy_nms):
    energy, one, _ = look(
        model, stages=dict(ascent=False, energy_nms=energy_nms)
    )
    assert energy.path.tolist() == [[0, 0, 0, 0]]
    torch.testing.assert_close(energy.corners, one.bboxes)


def test_corners_and_deviations_are_in_pixels_of_the_original_image(model):
    torch.manual_seed(1)
    network, one, _ = look(model)
    torch.manual_seed(1)
    original, *_ = look(model, scale_factor=(0.5, 0.25))
    scale = torch.tensor([2.0, 4, 2, 4])
    torch.testing.assert_close(original.corners, network.corners * scale)
    torch.testing.assert_close(original.std, network.std * scale)
    assert torch.equal(original.centre_map, network.centre_map)


def test_a_detection_that_is_not_there_is_refused(model):
    for detection in (5, -1):
        message = f'no detection {detection}: the image has 5'
        with pytest.raises(IndexError, match=message):
            look(model, detection)
