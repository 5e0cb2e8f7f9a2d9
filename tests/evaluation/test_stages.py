"""A model is used in one way inside, and as before afterwards."""

import math

import pytest

from mmdet_ebm.core import FixedBoxDensity
from mmdet_ebm.evaluation.stages import Stage, used

from .held_out import fittable_model


@pytest.mark.parametrize('density', [None, FixedBoxDensity(side_std=0.1)])
def test_changed_numbers_hold_inside_and_not_after(density):
    """Those of the model's own density, and those of another one."""
    model = fittable_model()
    own = model.energy_model.density
    before = own.numbers(), model.refinement
    other = density and density.numbers()
    stage = Stage(
        dict(rank=False), density, numbers=dict(temperature=math.inf)
    )
    with pytest.raises(RuntimeError), used(model, stage):
        assert not model.refinement.rank
        inside = model.energy_model.density
        assert inside is (density or own) and math.isinf(inside.temperature)
        raise RuntimeError
    assert model.energy_model.density is own
    assert (own.numbers(), model.refinement) == before
    assert density is None or density.numbers() == other
