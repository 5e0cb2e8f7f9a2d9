"""Checks of the data that a config names, before a run.

Each check raises a ValueError that names the fault and a way to correct it.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.runner import Runner

from ..datasets.coco_check import read_coco
from .checks import listed, require_classes


def require_classes_of_data(runner: Runner, split: str) -> None:
    """Require that the classes of model, data set and annotations agree.

    mmdet leaves out objects of other classes without a message. This builds
    the runner's loop, which would be built later anyway.

    Args:
        runner: With a model and the loop of ``split``.
        split: 'train', 'val' or 'test'.
    """
    configs = dict(
        _dataset_configs(
            runner.cfg[f'{split}_dataloader'].get('dataset'),
            f'{split}_dataloader.dataset',
        )
    )
    for where, config in configs.items():
        metainfo = DATASETS.build(dict(config, lazy_init=True)).metainfo
        if 'classes' in metainfo:
            require_classes(runner.model, metainfo['classes'], where)
    try:
        loop = getattr(runner, f'{split}_loop')
    except ValueError:  # for example, the data set is empty
        _require_categories(configs)
        raise
    if any(
        len(inner.cat_ids) != len(inner.metainfo['classes'])
        for inner in inner_datasets(loop.dataloader.dataset)
        if getattr(inner, 'cat_ids', None) is not None
    ):
        _require_categories(configs)


def _require_categories(dataset_configs: dict[str, dict]) -> None:
    """Require that annotation files have the classes of their data sets."""
    for where, config in dataset_configs.items():
        dataset = DATASETS.build(dict(config, lazy_init=True))
        if not str(dataset.ann_file).endswith('.json'):
            continue
        annotations = json.loads(Path(dataset.ann_file).read_text())
        found = [c['name'] for c in annotations.get('categories', [])]
        lacking = [c for c in dataset.metainfo['classes'] if c not in found]
        if lacking:
            raise ValueError(
                f'{where} looks for classes that {dataset.ann_file} does not '
                f'have: {listed(lacking)}. It has {listed(found)}; set '
                'metainfo = dict(classes=(...)) of the dataset to those names'
            )


@contextmanager
def naming_bad_annotations(config: Config) -> Iterator[None]:
    """Name the annotation file that made the block fail, if one did.

    pycocotools and mmdet say only where they were when it happened. Files are
    looked at after a failure alone: those of COCO take long to read.

    Args:
        config: With ``<split>_dataloader`` and ``<split>_evaluator``.
    """
    try:
        yield
    except Exception as error:
        for split in ('train', 'val', 'test'):
            for kind, path, where in _needed_files(config, split):
                if kind == 'annotation file' and path.endswith('.json'):
                    try:
                        read_coco(Path(path))
                    except ValueError as fault:
                        raise ValueError(f'{fault} ({where})') from error
                    except OSError:  # perhaps of a split that is not used
                        continue
        raise


def require_files(config: Config, splits: Iterable[str]) -> None:
    """Require that annotation files and image folders exist.

    Args:
        config: With ``<split>_dataloader`` and ``<split>_evaluator``.
        splits: Those used, of 'train', 'val' and 'test'.
    """
    for split in splits:
        for kind, path, where in _needed_files(config, split):
            if '://' in path or os.path.exists(path):
                continue
            raise ValueError(
                f'no {kind} {path} ({where}). Set data_root (and ann_file, '
                'data_prefix) in the config or with --cfg-options; the '
                'shipped configs read the environment variables BCCD_ROOT and '
                'DIGITS_ROOT, and "python tools/make_digits.py data/digits" '
                'makes the digits'
            )


def _needed_files(
    config: Config, split: str
) -> Iterator[tuple[str, str, str]]:
    """Files and folders of a split: kind, path and place in the config."""
    loader = config.get(f'{split}_dataloader') or {}
    for where, dataset in _dataset_configs(
        loader.get('dataset'), f'{split}_dataloader.dataset'
    ):
        root = dataset.get('data_root') or ''
        if dataset.get('ann_file'):
            path = os.path.join(root, dataset['ann_file'])
            yield 'annotation file', path, f'{where}.ann_file'
        prefix = dataset.get('data_prefix') or {}
        images = prefix.get('img', prefix.get('img_path'))
        if images and isinstance(images, str):
            path = os.path.join(root, images)
            yield 'image folder', path, f'{where}.data_prefix'
    evaluators = config.get(f'{split}_evaluator') or []
    if isinstance(evaluators, dict):
        evaluators = [evaluators]
    for evaluator in evaluators:
        if evaluator.get('ann_file'):
            where = f'{split}_evaluator.ann_file'
            yield 'annotation file', evaluator['ann_file'], where


def inner_datasets(dataset) -> Iterator:
    """The data sets inside of wrappers and concatenations."""
    if hasattr(dataset, 'datasets'):
        for inner in dataset.datasets:
            yield from inner_datasets(inner)
    elif hasattr(dataset, 'dataset'):
        yield from inner_datasets(dataset.dataset)
    else:
        yield dataset


def _dataset_configs(dataset, where: str) -> Iterator[tuple[str, dict]]:
    """The same for configs, with their places; only those on local disks."""
    if not isinstance(dataset, dict):
        return
    if 'dataset' in dataset:
        yield from _dataset_configs(dataset['dataset'], f'{where}.dataset')
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from _dataset_configs(inner, f'{where}.datasets.{i}')
    elif not dataset.get('backend_args'):
        yield where, dataset
