"""Inference on images, folders and videos."""

from ..environment import require_mmdet

require_mmdet()


from ..decoding import read_image
from .exports import to_supervision
from .inferencer import EnergyDetInferencer
from .inputs import expand_inputs
from .model import build_model
from .results import ImageResult, Summary, to_instances, to_prediction
from .results_folder import SavedImage, SavedResults

__all__ = [
    'EnergyDetInferencer',
    'ImageResult',
    'SavedImage',
    'SavedResults',
    'Summary',
    'build_model',
    'expand_inputs',
    'read_image',
    'to_instances',
    'to_prediction',
    'to_supervision',
]
