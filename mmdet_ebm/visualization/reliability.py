"""Pictures of calibration."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..evaluation.calibration import SideErrors, coverage

_LEVELS = np.linspace(0.02, 0.98, 25)
_BINS = 8


def draw_reliability(
    runs: Sequence[dict[str, SideErrors]], out_file: str | Path
) -> None:
    """Draw coverage over probability, and actual over predicted deviation.

    Args:
        runs: For each run of an experiment, errors by the name of the
            predictor of their deviations. The bands span all runs.
        out_file: Picture to write.
    """
    figure = Figure(figsize=(9, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2)
    for number, kind in enumerate(runs[0]):
        errors = [run[kind] for run in runs]
        colour = f'C{number}'
        shares = np.array([coverage(e, _LEVELS) for e in errors])
        left.plot(_LEVELS, shares.mean(0), color=colour, label=kind)
        left.fill_between(
            _LEVELS,
            shares.min(0),
            shares.max(0),
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
        # A constant deviation of each side gives no line.
        if len(np.unique(errors[0].std)) > 4:
            right.plot(
                *binned_deviations(errors), 'o-', color=colour, label=kind
            )
    left.plot([0, 1], [0, 1], 'k:', linewidth=1)
    left.set(
        xlabel='probability of the interval',
        ylabel='share of errors within it',
        xlim=(0, 1),
        ylim=(0, 1),
        title='coverage of intervals around the box side',
    )
    right.set(
        xlabel='predicted standard deviation / box side',
        ylabel='root mean square error / box side',
        xscale='log',
        yscale='log',
        title='sides in groups of equal number',
    )
    limits = [*right.get_xlim(), *right.get_ylim()]
    low, high = min(limits), max(limits)
    right.plot([low, high], [low, high], 'k:', linewidth=1)
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter('{x:g}')
        axis.set_minor_formatter(NullFormatter())
    left.legend()
    right.legend()
    figure.savefig(str(out_file), dpi=90)


def binned_deviations(
    errors: Sequence[SideErrors],
) -> tuple[np.ndarray, np.ndarray]:
    """Root mean squares of predicted deviations and of errors, in groups.

    The sides of all runs are sorted by their predicted deviation and divided
    into groups of equal number.

    Returns:
        Predicted and actual deviations (G,), relative to the boxes, for up to
        8 groups.
    """
    std = np.concatenate([e.std[e.known].ravel() for e in errors])
    error = np.concatenate([e.error[e.known].ravel() for e in errors])
    groups = np.array_split(np.argsort(std, kind='stable'), _BINS)
    squares = np.array(
        [
            [np.mean(std[group] ** 2), np.mean(error[group] ** 2)]
            for group in groups
            if len(group)
        ]
    )
    predicted, actual = np.sqrt(squares).reshape(-1, 2).T
    return predicted, actual
