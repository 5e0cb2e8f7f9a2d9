"""Single-object tracking: sequences on disk, other trackers, figures.

Boxes are corners x1, y1, x2, y2 in pixels of the frame, counted from 0, in
float64; NaN where the target is absent or its box unknown. Nothing here needs
torch or mmdet.
"""

from .crops import Region
from .figures import (
    SOTFigures,
    bootstrap_interval,
    box_overlaps,
    evaluate_boxes,
    mean_figures,
)
from .layouts import LAYOUTS, find_tracks
from .opencv_trackers import OPENCV_TRACKERS, OpenCVTracker
from .text import read_boxes, write_boxes
from .tracks import DamagedTrack, Track, read_frame

__all__ = [
    'DamagedTrack',
    'LAYOUTS',
    'OPENCV_TRACKERS',
    'OpenCVTracker',
    'Region',
    'SOTFigures',
    'Track',
    'bootstrap_interval',
    'box_overlaps',
    'evaluate_boxes',
    'find_tracks',
    'mean_figures',
    'read_boxes',
    'read_frame',
    'write_boxes',
]
