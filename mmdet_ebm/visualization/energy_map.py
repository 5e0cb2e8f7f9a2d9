"""Pictures of the log-density around a detection, still and moving."""

from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..models.energy_map import EnergyMap
from .marks import AFTER, BEFORE, STYLES, rectangle
from .refinement import side_bands

# Log-densities this far below the maximum, and lower ones, have one colour.
_DEPTH = 12.0
# Fall of a Gaussian's log-density at 1, 2 and 3 standard deviations.
_FALLS = (0.5, 2.0, 4.5)


class EnergyMapFigure:
    """The image with the boxes, and maps over centre and size with the path.

    Args:
        image: (H, W, 3) uint8 RGB.
        energy: From ``compute_energy_map``.
        title: Text above the figure.
        truth: (4,) corners of the annotated box in the image's pixels, if
            known.
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
            _draw_map(centre, energy.shift, energy.centre_map, path[:, :2]),
            _draw_map(size, energy.log_size, energy.size_map, path[:, 2:]),
        ]
        centre.set_title('centre', fontsize=10)
        centre.set(xlabel='shift in x / width', ylabel='shift in y / height')
        size.set_title('size', fontsize=10)
        size.set(xlabel='log of width ratio', ylabel='log of height ratio')
        centre.invert_yaxis()  # as in the image
        self.figure.colorbar(size.collections[0], ax=size, label='log-density')
        self._title = title
        self._headline = self.figure.suptitle(' ', fontsize=11)
        self.show_step(len(path) - 1)
        # The layout is fixed here, so that nothing moves between steps.
        self.figure.canvas.draw()
        self.figure.set_layout_engine('none')

    def show_step(self, step: int) -> None:
        """Show the path up to a step, and the box there."""
        x1, y1, x2, y2 = self.energy.corners[step].tolist()
        self._box.set_bounds(x1, y1, x2 - x1, y2 - y1)
        for line, end, path in self._lines:
            line.set_data(path[: step + 1].T)
            end.set_data(path[step : step + 1].T)
        self._headline.set_text(
            f'{self._title}  step {step} of {len(self.energy.path) - 1}, '
            f'log-density {self.energy.logdensity[step]:.2f}'
        )

    def picture(self) -> np.ndarray:
        """(H', W', 3) uint8 RGB."""
        self.figure.canvas.draw()
        return np.asarray(self.figure.canvas.buffer_rgba())[..., :3].copy()

    def save(self, out_file: str | Path) -> None:
        """Write a picture."""
        self.figure.savefig(str(out_file), dpi=80)

    def animate(self, out_file: str | Path) -> None:
        """Write the ascent as an animated GIF; the last step stays longer."""
        last = len(self.energy.path) - 1
        frames = [*range(last + 1), *[last] * 4]
        FuncAnimation(self.figure, self.show_step, frames).save(
            str(out_file), PillowWriter(fps=3), dpi=56
        )

    def _draw_scene(
        self, axes: Axes, image: np.ndarray, truth: Tensor | None
    ) -> None:
        """The image around the detection, with its boxes."""
        axes.imshow(image)
        before, after = self.energy.corners[[0, -1]]
        boxes = [before, after]
        if truth is not None:
            boxes.append(truth.cpu())
            axes.add_patch(rectangle(truth, **STYLES['truth']))
        axes.add_patch(rectangle(before, **STYLES['before']))
        self._box = rectangle(after, **STYLES['after'])
        axes.add_patch(self._box)
        for band in side_bands(after[None], self.energy.std[None]):
            style = dict(fill=True, color=AFTER, alpha=0.4, linewidth=0)
            axes.add_patch(rectangle(band, **style))
        corners = np.stack(boxes)
        low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
        margin = 0.35 * (high - low).max()
        height, width = image.shape[:2]
        axes.set_xlim(max(low[0] - margin, 0), min(high[0] + margin, width))
        axes.set_ylim(min(high[1] + margin, height), max(low[1] - margin, 0))
        axes.set_title('box, sides ± 1 standard deviation', fontsize=10)
        axes.legend(
            fontsize=8,
            frameon=False,
            loc='upper center',
            bbox_to_anchor=(0.5, 0),
            ncols=3,
        )
        axes.set_axis_off()


def _draw_map(
    axes: Axes, axis: Tensor, values: Tensor, path: np.ndarray
) -> tuple[Line2D, Line2D, np.ndarray]:
    """Draw a map (R, R) over an axis (R,), and where the path begins.

    Returns:
        Lines for the path and its end, to be filled in, and the path (N, 2).
    """
    top = values[~values.isnan()].max().item()
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
    levels = sorted(top - fall for fall in _FALLS)
    style = dict(colors='white', linewidths=0.6)
    axes.contour(axis, axis, values, levels, **style)
    (line,) = axes.plot([], [], '.-', color='white', linewidth=1, markersize=4)
    axes.plot(*path[0], 'o', color=BEFORE, markersize=5)
    (end,) = axes.plot([], [], 'o', color=AFTER, markersize=5)
    return line, end, path
