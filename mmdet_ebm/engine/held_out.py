"""Training images that are kept aside, where a config has no val split."""

import copy

import numpy as np
from mmdet.registry import DATASETS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config

from .config_types import custom_hooks, type_of

# One image of ten, but no more than this number, and none of a few.
_PART, _MOST, _FEWEST = 10, 300, 20


def keep_images_aside(cfg: Config) -> str:
    """Keep a part of the training images for the fit of the density.

    Only where a density is fitted at the end, and there is no val split to
    fit on. The images are spread evenly over the training set; the energy
    model is never trained on them.

    Args:
        cfg: Changed in place: ``indices`` of the training set, and the
            ``dataloader`` of the ``FitDensityHook``.

    Returns:
        A line for the log, empty if nothing was to be done.
    """
    hooks = custom_hooks(cfg, 'FitDensityHook')
    density = cfg.model.get('energy_model', {}).get('density', 'fitted')
    if (
        cfg.get('val_dataloader')
        or not hooks
        or hooks[0].get('dataloader')
        or density != 'fitted'
    ):
        return ''
    dataset = cfg.train_dataloader.dataset
    while 'dataset' in dataset:  # a wrapper of one
        dataset = dataset.dataset
    pipeline = _test_pipeline(cfg)
    if 'datasets' in dataset or pipeline is None:
        return (
            'No images can be kept aside for the fit of the density: that '
            'needs one training set and a test pipeline.'
        )
    images = _images_of(dataset)
    number = min(len(images) // _PART, _MOST)
    if len(images) < _FEWEST:
        return f'{len(images)} training images are too few to keep some aside.'
    places = np.linspace(0, len(images) - 1, number).round().astype(int)
    kept, rest = images[places], np.delete(images, places)
    # Not in test mode, which would count images without objects, too.
    held_out = dict(
        copy.deepcopy(dataset), pipeline=pipeline, indices=kept.tolist()
    )
    dataset.indices = rest.tolist()
    hooks[0].dataloader = dict(
        batch_size=1,
        num_workers=cfg.train_dataloader.get('num_workers', 0),
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=held_out,
    )
    return (
        f'There is no val split. {number} of {len(images)} training images '
        'are kept aside to fit the density of boxes on. The detector may '
        'have learned them, and then the fit is too cautious.'
    )


def _images_of(dataset: dict) -> np.ndarray:
    """The images that a data set uses, numbered as ``indices`` does it."""
    built = DATASETS.build(dict(dataset, pipeline=[], indices=None))
    images = np.arange(len(built))
    chosen = dataset.get('indices')
    if chosen is None:
        return images
    if isinstance(chosen, int):  # the first ones; the last ones below 0
        return images[:chosen] if chosen >= 0 else images[chosen:]
    return images[list(chosen)]


def _test_pipeline(cfg: Config) -> list[dict] | None:
    """The steps of the test pipeline, with annotations."""
    if cfg.get('test_dataloader'):
        steps = get_test_pipeline_cfg(cfg)
    else:  # the name that mmdet's configs use
        steps = cfg.get('test_pipeline')
    if not steps:
        return None
    steps = copy.deepcopy(list(steps))
    if not any(type_of(step) == 'LoadAnnotations' for step in steps):
        steps.insert(-1, dict(type='LoadAnnotations', with_bbox=True))
    return steps
