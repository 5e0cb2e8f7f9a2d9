"""Names of weights in checkpoints of plain detectors and of older versions."""

from typing import Any

ENERGY_MODEL, DETECTOR = 'energy_model.', 'detector.'
# Where version 0.1 kept the energy model: in an ``EnergyDetector``, and in
# the RoI head of an ``EnergyTwoStageDetector``.
_OLD_ENERGY_MODELS = ('refiner.', 'roi_head.refiner.')


def rename_old_keys(
    state_dict: dict[str, Any], prefix: str = '', *args: Any
) -> None:
    """Rename a state to that of an ``EnergyDetector``, in place.

    A plain detector's keys get ``detector.`` in front. Keys of version 0.1
    have the energy model moved to ``energy_model.``. Present names stay.

    Args:
        state_dict: Weights by name.
        prefix: In front of the names that belong to the detector.
        *args: What torch gives its hooks beside these; not used.
    """
    is_whole = any(key.startswith(prefix + DETECTOR) for key in state_dict)
    for key in list(state_dict):
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        new = name
        for old in _OLD_ENERGY_MODELS:
            if name.startswith(old):
                new = ENERGY_MODEL + name[len(old) :]
        if new == name and not is_whole and not name.startswith(ENERGY_MODEL):
            new = DETECTOR + name
        if new != name:
            state_dict[prefix + new] = state_dict.pop(key)
