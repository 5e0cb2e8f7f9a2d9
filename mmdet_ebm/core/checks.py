"""Checks of the numbers in a config."""

import math
from numbers import Real
from typing import Any


def positive_int(name: str, value: int) -> int:
    """``value``, if it is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f'{name} must be a positive whole number, got {value!r}'
        )
    return value


def positive(name: str, value: Any) -> float:
    """``value``, if it is a finite number above 0."""
    if not _is_real(value) or not 0 < value < math.inf:
        raise ValueError(f'{name} must be positive, got {value!r}')
    return value


def not_negative(name: str, value: Any) -> float:
    """``value``, if it is a finite number of at least 0."""
    if not _is_real(value) or not 0 <= value < math.inf:
        raise ValueError(
            f'{name} must not be negative and must be finite, got {value!r}'
        )
    return value


def _is_real(value: Any) -> bool:
    return isinstance(value, Real)
