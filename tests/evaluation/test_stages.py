"""A model is used in one way inside, and as before afterwards."""

import math

import pytest
import torch

from mmdet_ebm.evaluation.stages import Stage, used

from .held_out import fittable_model


def test_changed_numbers_hold_inside_and_not_after():
    model = fittable_model()
    density = model.energy_model.density
    before = density.numbers(), model.refinement, model.energy_model.ascent
    stage = Stage(
        dict(rank=False), dict(temperature=math.inf), dict(num_steps=7)
    )
    model.energy_model.inference_dtype = torch.bfloat16
    with pytest.raises(RuntimeError), used(model, stage):
        assert model.energy_model.inference_dtype == torch.bfloat16
        assert not model.refinement.rank
        assert math.isinf(density.temperature)
        assert model.energy_model.ascent.num_steps == 7
        raise RuntimeError
    after = density.numbers(), model.refinement, model.energy_model.ascent
    assert after == before
