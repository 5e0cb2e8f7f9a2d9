r"""A discriminative correlation filter: where is the target now?

With features :math:`x_c` (Fourier transforms :math:`X_c`) of the target, faded
out beside it so that the background is not learned, and a narrow Gaussian y
in the middle, the filter of least squared error has

.. math:: \hat h_c = \frac{Y \bar X_c}{\sum_k |X_k|^2 + \lambda} ,

numerator and denominator being running means over the frames. Its response
to new features peaks where the target moved to.

Source: "Accurate Scale Estimation for Robust Visual Tracking", BMVC 2014,
section 3, the translation filter.
"""

import torch
from torch import Tensor

_LABEL_STD = 0.04  # of the Gaussian, over the side of the map
_WINDOW_STD = 0.35  # of what is learned, over the target's size
_REGULARISER = 0.01  # lambda, over the mean of the denominator


class CorrelationFilter:
    """The filter and its running means.

    Args:
        rate: Weight of a new frame in the means.
    """

    def __init__(self, rate: float = 0.02) -> None:
        self.rate = rate
        self._numerator = self._denominator = None

    def learn(self, features: Tensor, share: tuple[float, float]) -> None:
        """Take in a frame with the target in the middle.

        Args:
            features: (C, H, W).
            share: Width and height of the target over those of the map.
        """
        height, width = features.shape[1:]
        x = _transform(
            features,
            _gaussian(height, _WINDOW_STD * share[1], features),
            _gaussian(width, _WINDOW_STD * share[0], features),
        )
        y = torch.fft.fft2(
            _gaussian(height, _LABEL_STD, features)[:, None]
            * _gaussian(width, _LABEL_STD, features)
        )
        numerator = y * x.conj()
        denominator = x.abs().square().sum(0)
        if self._numerator is None:
            self._numerator, self._denominator = numerator, denominator
        else:
            self._numerator = self._numerator.lerp(numerator, self.rate)
            self._denominator = self._denominator.lerp(denominator, self.rate)

    def locate(self, features: Tensor) -> tuple[Tensor, float]:
        """Find the target.

        Args:
            features: (C, H, W).

        Returns:
            Its shift (2,) from the middle along x and y, in cells, and the
            height of the response there, about 1 for what was learned.

        Raises:
            ValueError: If nothing was learned.
        """
        if self._numerator is None:
            raise ValueError('the correlation filter has learned no target')
        least = _REGULARISER * self._denominator.mean()
        windows = (
            torch.hann_window(
                size, dtype=features.dtype, device=features.device
            )
            for size in features.shape[1:]
        )
        x = _transform(features, *windows)
        spectrum = (self._numerator * x).sum(0) / (self._denominator + least)
        response = torch.fft.ifft2(spectrum).real
        height, width = response.shape
        row, column = divmod(int(response.argmax()), width)
        shift = [
            column + _between(response[row], column) - width // 2,
            row + _between(response[:, column], row) - height // 2,
        ]
        return response.new_tensor(shift), float(response[row, column])


def _transform(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Fourier transforms (C, H, W) of features times a window."""
    centred = features - features.mean((1, 2), keepdim=True)
    return torch.fft.fft2(centred * rows[:, None] * columns)


def _gaussian(size: int, std: float, like: Tensor) -> Tensor:
    """(size,) around the middle cell; std is over the size."""
    cells = torch.arange(size, dtype=like.dtype, device=like.device)
    return (-0.5 * ((cells - size // 2) / (std * size)).square()).exp()


def _between(values: Tensor, peak: int) -> float:
    """Where a parabola through a peak (periodic) and its neighbours peaks."""
    before, at, after = (
        float(values[(peak + step) % len(values)]) for step in (-1, 0, 1)
    )
    curvature = before - 2 * at + after
    if not curvature < 0:
        return 0.0
    return max(-0.5, min(0.5, 0.5 * (before - after) / curvature))
