"""What tests of pooling share."""

import torch

METHODS = ('cells', 'prefix')

# Inside, crossing each border, spanning the whole map, and beyond it.
ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 7.7, 6.4],
        [1, -3.2, -2.2, 4.1, 5.3],
        [1, 8.3, 6.2, 14.1, 13.7],
        [0, -4.7, -5.3, 19.2, 17.4],
        [0, 3.12, 4.21, 3.57, 4.88],
        [1, 30, 30, 40, 40],
    ],
    dtype=torch.float64,
)


def random_map(channels=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 9, 11, generator=generator, dtype=dtype)
