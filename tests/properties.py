"""What property-based tests share: few examples, and always the same ones."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=25, derandomize=True, deadline=None, database=None)

seeds = st.integers(0, 2**32 - 1)


def numbers(low, high):
    """Finite float32 numbers, as Python floats."""
    return st.floats(low, high, allow_nan=False, width=32)


@st.composite
def boxes(draw, limit=100.0, smallest=0.125):
    """Corners x1, y1, x2, y2 of a box with an area, somewhere."""
    x, y = draw(numbers(-limit, limit)), draw(numbers(-limit, limit))
    width, height = (draw(numbers(smallest, limit)) for _ in range(2))
    return [x, y, x + width, y + height]


def tables(rows, max_size=6):
    """Between one and some rows, as a float64 tensor."""
    return st.lists(rows, min_size=1, max_size=max_size).map(
        lambda values: torch.tensor(values, dtype=torch.float64)
    )
