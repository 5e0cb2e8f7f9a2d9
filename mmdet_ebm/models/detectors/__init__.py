"""Detectors with an energy model."""

from .box_sources import BOX_SOURCES, BoxSource
from .detectron import (
    DetectronAnchorGenerator,
    DetectronBoxCoder,
    DetectronEnergyDetector,
)
from .energy_detector import Detected, EnergyDetector
from .refinement import Refinement, energy_nms, refine_detections

__all__ = [
    'BOX_SOURCES',
    'BoxSource',
    'Detected',
    'DetectronAnchorGenerator',
    'DetectronBoxCoder',
    'DetectronEnergyDetector',
    'EnergyDetector',
    'Refinement',
    'energy_nms',
    'refine_detections',
]
