"""Pictures of the study, drawn from the files of its experiments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from .data import X_MAX, X_MIN

# Colour follows this power of the density: peaks differ by a factor of 20.
_GAMMA = 0.5


def _figure(num_rows: int, num_columns: int, width: float, height: float):
    """A figure and its axes (rows, columns), without pyplot's state."""
    figure = Figure(
        (width * num_columns, height * num_rows), layout='constrained'
    )
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def _show_density(axis, density, brightest, title):
    norm = PowerNorm(_GAMMA, vmin=0, vmax=brightest, clip=True)
    axis.imshow(
        density.T,
        origin='lower',
        norm=norm,
        aspect='auto',
        cmap=matplotlib.colormaps['magma'],
        extent=(X_MIN, X_MAX, X_MIN, X_MAX),
    )
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def draw_densities(arrays_path: Path, title: str, path: Path) -> None:
    """True and learned density side by side, over (x, y).

    Args:
        arrays_path: The experiment's densities (NPZ).
        title: Of the learned one.
        path: Picture to write.
    """
    arrays = _load(arrays_path)
    brightest = arrays['true'].max()
    figure, axes = _figure(1, 2, 3.4, 3.2)
    _show_density(axes[0, 0], arrays['true'], brightest, 'true')
    _show_density(
        axes[0, 1],
        arrays['learned'],
        brightest,
        f'{title}, D_KL {arrays["kl"]:.3f}',
    )
    for axis in axes[0]:
        axis.set_xlabel('x')
    axes[0, 0].set_ylabel('y')
    figure.savefig(path, dpi=110)


def draw_curve(result: dict[str, Any], title: str, path: Path) -> None:
    """Loss and D_KL over epochs: mean and range over the models."""
    figure, (axes,) = _figure(1, 2, 3.6, 2.8)
    loss = np.array(result['history']['loss'])
    kl = result['history']['kl']
    _show_range(axes[0], np.arange(1, len(loss) + 1), loss, 'loss')
    _show_range(
        axes[1],
        [int(epoch) for epoch in kl],
        np.array(list(kl.values())),
        'D_KL',
    )
    if np.nanmin(list(kl.values())) > 0:
        axes[1].set_yscale('log')
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def _show_range(axis, epochs, values, label):
    axis.plot(epochs, values.mean(1))
    axis.fill_between(epochs, values.min(1), values.max(1), alpha=0.25)
    axis.set_xlabel('epoch')
    axis.set_ylabel(label)


def draw_overview(
    cells: dict[tuple[str, int], tuple[dict[str, Any], Path]],
    methods: Sequence[str],
    path: Path,
) -> None:
    """All methods in one figure: a row for each data set, the truth first.

    Args:
        cells: (method, data set) -> result and densities (NPZ).
        methods: Order of the columns.
        path: Picture to write.
    """
    datasets = sorted({dataset for _, dataset in cells})
    figure, axes = _figure(len(datasets), 1 + len(methods), 1.9, 1.9)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, dataset in zip(axes, datasets):
        for axis, method in zip(row[1:], methods):
            if (method, dataset) not in cells:
                continue
            result, arrays_path = cells[method, dataset]
            arrays = _load(arrays_path)
            brightest = arrays['true'].max()
            _show_density(
                axis,
                arrays['learned'],
                brightest,
                f'{method}  {result["all"]["mean"]:.3f}',
            )
            _show_density(
                row[0], arrays['true'], brightest, f'true, data set {dataset}'
            )
    figure.savefig(path, dpi=110)


def draw_ablation(
    lines: dict[str, Sequence[tuple[float, float, float]]],
    x_label: str,
    path: Path,
    log_x: bool = True,
) -> None:
    """D_KL against a setting, one line for each method and data set.

    Args:
        lines: label -> (setting, mean, standard error) for each point.
        x_label: What the setting is.
        path: Picture to write.
        log_x: A logarithmic axis for the setting.
    """
    figure, ((axis,),) = _figure(1, 1, 5.2, 3.6)
    for label, points in lines.items():
        x, mean, error = np.array(sorted(points)).T
        axis.errorbar(x, mean, error, marker='o', capsize=3, label=label)
    if log_x:
        axis.set_xscale('log')
    axis.set_yscale('log')
    axis.set_xlabel(x_label)
    axis.set_ylabel('D_KL')
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
