"""One model, used in several ways."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from ..models import EnergyDetector


@dataclass(frozen=True)
class Stage:
    """One way to use an energy model.

    Attributes:
        switches: Of the model's ``Refinement``.
        numbers: Changes to the numbers of the density.
        ascent: Changes to the ascent.
        dtype: Precision of the head; None for the model's own.
    """

    switches: Mapping[str, bool]
    numbers: Mapping[str, float] = field(default_factory=dict)
    ascent: Mapping[str, object] = field(default_factory=dict)
    dtype: torch.dtype | None = None


@contextlib.contextmanager
def used(model: EnergyDetector, stage: Stage) -> Iterator[None]:
    """The model works like this inside."""
    energy_model = model.energy_model
    density = energy_model.density
    names = ('ascent', 'inference_dtype')
    usual = {name: getattr(energy_model, name) for name in names}
    refinement, numbers = model.refinement, density.numbers()
    try:
        model.refinement = replace(refinement, **stage.switches)
        energy_model.ascent = replace(energy_model.ascent, **stage.ascent)
        if stage.dtype is not None:
            energy_model.inference_dtype = stage.dtype
        density.set_numbers(**stage.numbers)
        yield
    finally:
        model.refinement = refinement
        density.set_numbers(**numbers)
        for name, value in usual.items():
            setattr(energy_model, name, value)
