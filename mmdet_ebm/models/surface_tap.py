"""The feature maps on which an energy model worked last, for looking at it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmdet.structures import DetDataSample

from ..ops import FeatureSurface
from .boxes import Boxes
from .refinement import image_sizes
from .refiner import EnergyRefiner


class SurfaceTap:
    """Keeps what a refiner prepared for the batch that ran last.

    It serves any detector, and costs no second run of it.

    Args:
        refiner: The detector's energy model.
    """

    def __init__(self, refiner: EnergyRefiner) -> None:
        self.refiner = refiner
        self._surface: FeatureSurface | None = None

    @contextmanager
    def running(self) -> Iterator['SurfaceTap']:
        """Watch while the detector runs inside this block."""
        self.open()
        try:
            yield self
        finally:
            self.close()

    def open(self) -> None:
        """Start watching."""
        make = type(self.refiner).surface

        def surface(*args, **kwargs):
            self._surface = make(self.refiner, *args, **kwargs)
            return self._surface

        self.refiner.surface = surface

    def close(self) -> None:
        """Stop watching, and free the maps."""
        self.refiner.__dict__.pop('surface', None)
        self._surface = None

    @property
    def surface(self) -> FeatureSurface:
        """Of the batch that ran last.

        Raises:
            ValueError: If the energy model did not run.
        """
        if self._surface is None:
            raise ValueError(
                'the energy model did not run on this batch; switch a stage '
                'of its refinement on (energy_nms, ascent or uncertainty)'
            )
        return self._surface


def network_boxes(
    samples: Sequence[DetDataSample], field: str = 'bboxes'
) -> tuple[Boxes, list]:
    """Predicted boxes back in network-input pixels, and the images' sizes.

    Args:
        samples: Results of a batch, in original-image pixels.
        field: Which boxes: 'bboxes' or 'initial_bboxes'.
    """
    corners = []
    for sample in samples:
        boxes = sample.pred_instances[field]
        scale = sample.metainfo.get('scale_factor', (1.0, 1.0))
        corners.append(boxes * boxes.new_tensor(scale).repeat(2))
    return (
        Boxes.from_images(corners, [s.pred_instances.labels for s in samples]),
        image_sizes([sample.metainfo for sample in samples]),
    )
