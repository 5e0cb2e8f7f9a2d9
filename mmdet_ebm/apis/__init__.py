"""Inference on images and folders."""

from .inference import (InferenceReport, build_model, infer_folder,
                        list_images, predict_images, require_energy_weights)

__all__ = [
    'InferenceReport', 'build_model', 'infer_folder', 'list_images',
    'predict_images', 'require_energy_weights'
]
