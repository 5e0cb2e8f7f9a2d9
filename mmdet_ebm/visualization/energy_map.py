"""Pictures of the log-density around a detection, still and moving."""

from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..models.energy_map import EnergyMap
from .refinement import AFTER_COLOUR, BEFORE_COLOUR

# Log-densities this far below the maximum are drawn alike.
_DEPTH = 12.0
# Fall of a Gaussian's log-density at 1, 2 and 3 standard deviations.
_FALLS = (0.5, 2.0, 4.5)
_BEFORE, _AFTER = (
    tuple(c / 255 for c in colour) for colour in (BEFORE_COLOUR, AFTER_COLOUR)
)
_TRUTH = 'white'


class EnergyMapFigure:
    """The image with the boxes, and both maps with the path.

    Args:
        image: (H, W, 3) uint8 RGB.
        energy: From ``compute_energy_map``.
        title: Above it.
        truth: (4,) annotated box, if known.
    """

    def __init__(
        self,
        image: np.ndarray,
        energy: EnergyMap,
        title: str = '',
        truth: Tensor | None = None,
    ) -> None:
        self.energy = energy
        self.figure = Figure(figsize=(11, 3.7), layout='constrained')
        FigureCanvasAgg(self.figure)
        scene, centre, size = self.figure.subplots(1, 3)
        self._draw_scene(scene, image, truth)
        path = energy.path.numpy()
        self._lines = [
            _draw_map(
                centre,
                energy.shift,
                energy.centre_map,
                path[:, :2],
                'centre',
                'shift in x / width',
                'shift in y / height',
            ),
            _draw_map(
                size,
                energy.log_size,
                energy.size_map,
                path[:, 2:],
                'size',
                'log of width ratio',
                'log of height ratio',
            ),
        ]
        centre.invert_yaxis()  # as in the image
        self.figure.colorbar(size.collections[0], ax=size, label='log-density')
        self._title = title
        self._headline = self.figure.suptitle(' ', fontsize=11)
        self.show_step(len(path) - 1)
        # Laid out once: nothing jumps from step to step.
        self.figure.canvas.draw()
        self.figure.set_layout_engine('none')

    def show_step(self, step: int) -> None:
        """The path up to a step, and the box there."""
        x1, y1, x2, y2 = self.energy.corners[step].tolist()
        self._box.set_bounds(x1, y1, x2 - x1, y2 - y1)
        for line, end, path in self._lines:
            line.set_data(path[: step + 1].T)
            end.set_data(path[step : step + 1].T)
        self._headline.set_text(
            f'{self._title}  step {step} of {len(self.energy.path) - 1}, '
            f'f = {self.energy.logdensity[step]:.2f}'
        )

    def picture(self) -> np.ndarray:
        """(H', W', 3) uint8 RGB."""
        self.figure.canvas.draw()
        return np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy()

    def save(self, out_file: str | Path) -> None:
        """Write a picture."""
        self.figure.savefig(str(out_file), dpi=80)

    def animate(self, out_file: str | Path, fps: float = 3) -> None:
        """Write the ascent as an animated GIF; the last step stays longer."""
        last = len(self.energy.path) - 1
        frames = [*range(last + 1), *[last] * 4]
        FuncAnimation(self.figure, self.show_step, frames).save(
            str(out_file), PillowWriter(fps), dpi=56
        )

    def _draw_scene(
        self, axes, image: np.ndarray, truth: Tensor | None
    ) -> None:
        axes.imshow(image)
        boxes = [self.energy.corners[[0, -1]]]
        if truth is not None:
            boxes.append(truth[None].cpu())
            axes.add_patch(
                _rectangle(
                    truth, edgecolor=_TRUTH, linestyle=':', label='annotation'
                )
            )
        axes.add_patch(
            _rectangle(
                self.energy.corners[0],
                edgecolor=_BEFORE,
                linestyle='--',
                label='before',
            )
        )
        self._box = _rectangle(
            self.energy.corners[-1], edgecolor=_AFTER, label='refined'
        )
        axes.add_patch(self._box)
        if self.energy.std.isfinite().all():
            _draw_bands(axes, self.energy.corners[-1], self.energy.std)
        corners = np.concatenate([b.numpy() for b in boxes])
        low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
        margin = 0.35 * (high - low).max()
        height, width = image.shape[:2]
        axes.set_xlim(max(low[0] - margin, 0), min(high[0] + margin, width))
        axes.set_ylim(min(high[1] + margin, height), max(low[1] - margin, 0))
        axes.set_title('box, sides ± 1 standard deviation', fontsize=10)
        axes.legend(fontsize=8, framealpha=0.6, loc='lower right')
        axes.set_axis_off()


def _draw_map(axes, axis, values, path, title, xlabel, ylabel):
    values = values.numpy()
    top = np.nanmax(values)
    axes.pcolormesh(
        axis,
        axis,
        values,
        shading='nearest',
        cmap='viridis',
        vmin=top - _DEPTH,
        vmax=top,
        rasterized=True,
    )
    axes.contour(
        axis,
        axis,
        values,
        sorted(top - fall for fall in _FALLS),
        colors='white',
        linewidths=0.6,
    )
    axes.set_title(title, fontsize=10)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    (line,) = axes.plot([], [], '.-', color='white', linewidth=1, markersize=4)
    axes.plot(*path[0], 'o', color=_BEFORE, markersize=5)
    (end,) = axes.plot([], [], 'o', color=_AFTER, markersize=5)
    return line, end, path


def _draw_bands(axes, corners: Tensor, std: Tensor) -> None:
    x1, y1, x2, y2 = corners.tolist()
    sx1, sy1, sx2, sy2 = std.tolist()
    for x, s in ((x1, sx1), (x2, sx2)):
        axes.add_patch(
            Rectangle(
                (x - s, y1),
                2 * s,
                y2 - y1,
                color=_AFTER,
                alpha=0.4,
                linewidth=0,
            )
        )
    for y, s in ((y1, sy1), (y2, sy2)):
        axes.add_patch(
            Rectangle(
                (x1, y - s),
                x2 - x1,
                2 * s,
                color=_AFTER,
                alpha=0.4,
                linewidth=0,
            )
        )


def _rectangle(corners: Tensor, **style) -> Rectangle:
    x1, y1, x2, y2 = corners.tolist()
    return Rectangle(
        (x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.2, **style
    )
