"""One model, used in several ways."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from ..core import BoxDensity
from ..models import EnergyDetector


@dataclass(frozen=True)
class Stage:
    """One way to use an energy model.

    Attributes:
        switches: Of the model's ``Refinement``.
        density: In place of the fitted one.
        ascent: Changes to the ascent.
        dtype: Precision of the head.
        numbers: Changes to the numbers of the density.
    """

    switches: Mapping[str, bool]
    density: BoxDensity | None = None
    ascent: Mapping[str, object] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def used(model: EnergyDetector, stage: Stage) -> Iterator[None]:
    """The model works like this inside."""
    energy_model = model.energy_model
    names = ('ascent', 'density', 'inference_dtype')
    usual = {name: getattr(energy_model, name) for name in names}
    refinement = model.refinement
    density = stage.density or energy_model.density
    numbers = density.numbers()
    try:
        model.refinement = replace(refinement, **stage.switches)
        energy_model.ascent = replace(energy_model.ascent, **stage.ascent)
        energy_model.density = density
        density.set_numbers(**stage.numbers)
        energy_model.inference_dtype = stage.dtype
        yield
    finally:
        model.refinement = refinement
        density.set_numbers(**numbers)
        for name, value in usual.items():
            setattr(energy_model, name, value)
