"""The figure of a map, still and moving."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmdet_ebm.models.energy_map import EnergyMap
from mmdet_ebm.visualization import EnergyMapFigure


@pytest.fixture
def energy():
    axis = torch.linspace(-0.3, 0.3, 9)
    hill = -20 * (axis[:, None].square() + axis.square())
    path = torch.tensor(
        [[0.2, 0.1, 0.1, 0.0], [0.1, 0.0, 0.05, 0.0], [0.0, 0, 0, 0]]
    )
    corners = torch.tensor(
        [[20.0, 20, 60, 50], [17.0, 18, 57, 48], [13.0, 15, 53, 45]]
    )
    return EnergyMap(
        axis,
        hill,
        axis,
        hill,
        path,
        torch.tensor([1.0, 2.0, 2.5]),
        corners,
        torch.tensor([2.0, 2, 3, 3]),
    )


@pytest.fixture
def image():
    return np.full((64, 80, 3), 90, np.uint8)


def test_the_box_moves_with_the_step(energy, image):
    figure = EnergyMapFigure(
        image, energy, 'thing', truth=torch.tensor([12.0, 14, 52, 46])
    )
    last = figure.picture()
    figure.show_step(0)
    first = figure.picture()
    assert first.shape == last.shape and first.dtype == np.uint8
    assert (first != last).any()
    figure.show_step(2)
    assert np.array_equal(figure.picture(), last)


def test_unknown_deviations_draw_no_bands(energy, image):
    known = EnergyMapFigure(image, energy).picture()
    object.__setattr__(energy, 'std', torch.full((4,), torch.nan))
    assert (EnergyMapFigure(image, energy).picture() != known).any()


def test_the_animation_shows_every_step(energy, image, tmp_path):
    figure = EnergyMapFigure(image, energy)
    figure.save(tmp_path / 'map.png')
    figure.animate(tmp_path / 'map.gif')
    with Image.open(tmp_path / 'map.gif') as moving:
        # Three steps, and the last one again, which the format may join.
        assert moving.n_frames >= 3
    for name in ('map.png', 'map.gif'):
        assert 5_000 < (tmp_path / name).stat().st_size < 200_000
