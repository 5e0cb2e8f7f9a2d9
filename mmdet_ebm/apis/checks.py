"""Refuse what would fail late, or silently give nonsense.

Each check raises a ValueError that says what was found and what to do.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from ..models import EnergyRefiner
from ..models.refinement import Refinement


@contextmanager
def exit_with_message() -> Iterator[None]:
    """For command lines: the message of an error instead of its traceback."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


def load_checkpoint_file(checkpoint: str | Path) -> dict:
    """What a checkpoint file holds, on the CPU.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is none.
    """
    if '://' not in str(checkpoint) and not Path(checkpoint).is_file():
        raise FileNotFoundError(f'no checkpoint at {checkpoint}')
    try:
        loaded = CheckpointLoader.load_checkpoint(
            str(checkpoint), map_location='cpu'
        )
    except Exception as error:
        raise ValueError(
            f'{checkpoint} cannot be read as a checkpoint: {error}'
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(
            f'{checkpoint} holds a {type(loaded).__name__}, not a checkpoint'
        )
    return loaded


def require_registered(config: Config) -> None:
    """The config must have imported the types that it names."""
    wanted = config.get('model', {}).get('type')
    if wanted is None:
        raise ValueError('the config has no model; name an mmdet config')
    if isinstance(wanted, str) and MODELS.get(wanted) is None:
        raise ValueError(
            f'no model type {wanted} is known. If it is one of mmdet_ebm, add '
            "custom_imports = dict(imports=['mmdet_ebm.models', "
            "'mmdet_ebm.evaluation']) to the config; if it is your own, "
            'import its module there'
        )


def find_refiner(model: nn.Module) -> tuple[str, EnergyRefiner] | None:
    """A model's energy model, and where its parameters lie."""
    for name, module in model.named_modules():
        if isinstance(module, EnergyRefiner):
            return name, module
    return None


def is_frozen(model: nn.Module) -> bool:
    """Whether the energy model trains alone, on a detector that is given."""
    return any(
        getattr(module, 'freeze_detector', False) for module in model.modules()
    )


def require_energy_model(model: nn.Module) -> None:
    """There must be something to refine with."""
    if find_refiner(model) is None:
        raise ValueError(
            f'the config has no energy model (its {type(model).__name__} has '
            'no EnergyRefiner), so nothing would be refined. Name the config '
            'that the energy model was trained with; docs/'
            'add_to_your_detector.md shows how to write one'
        )


def require_weights(
    model: nn.Module, checkpoint: str | Path, detector_only: bool = False
) -> None:
    """A checkpoint must hold what a model needs, in its shapes.

    mmengine merely warns, and leaves what does not fit at random: boxes would
    be refined, or an energy model trained, on noise.

    Args:
        model: Built from the config; may be wrapped.
        checkpoint: To be loaded.
        detector_only: The energy model's own weights need not be there.
    """
    loaded = load_checkpoint_file(checkpoint)
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    state = {
        re.sub('^(module[.])+', '', key): value
        for key, value in loaded.get('state_dict', loaded).items()
    }
    name, refiner = find_refiner(model) or ('', None)
    prefix = f'{name}.' if refiner is not None else None
    energy = prefix and not detector_only and _is_refining(model)
    if energy and not any(key.startswith(prefix) for key in state):
        stages = ' '.join(f'{switch}=False' for switch in _switches(model))
        raise ValueError(
            f'{checkpoint} holds no weights of an energy model (no key with '
            f'"{prefix}"); train one with this config, use the plain '
            "detector's config, or switch all stages of its refinement off "
            f'(--cfg-options {stages})'
        )
    complaints = [
        complaint
        for complaint in _load(model, state)
        if energy or prefix is None or not complaint.startswith(prefix)
    ]
    if not complaints:
        return
    _require_classes_of(checkpoint, loaded, model)
    raise ValueError(
        f'{checkpoint} is not of the model of this config: '
        f'{len(complaints)} weights do not fit ('
        + '; '.join(complaints[:3])
        + '). Name the config that it was '
        'trained with, or the checkpoint of this one'
    )


def _load(model: nn.Module, state: dict) -> list[str]:
    """Load a state as far as it fits; what does not, by the model's names.

    It will be loaded anyway, and only loading knows what a module accepts.
    """
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        shapes = re.findall(
            r'size mismatch for (\S+): .*?\[(.*?)\].*?\[(.*?)\]', str(error)
        )
        if not shapes:
            raise
        return [
            f'{key} has shape ({found}) in the checkpoint and ({expected})'
            ' by the config'
            for key, found, expected in shapes
        ]
    return [
        f'{key} is not in the checkpoint'
        for key in missing
        if not key.endswith('num_batches_tracked')
    ]


def _require_classes_of(checkpoint, loaded: dict, model: nn.Module) -> None:
    classes = dataset_meta(loaded).get('classes')
    ours = number_of_classes(model)
    if classes is None or ours is None or len(classes) == ours:
        return
    raise ValueError(
        f'{checkpoint} was trained for {len(classes)} classes '
        f'({_listed(classes)}) and the config has num_classes={ours}. Use a '
        f'detector trained for these classes, or set num_classes='
        f'{len(classes)} (model.roi_head.bbox_head.num_classes in a two-stage '
        'detector) and the classes of the data set (metainfo) accordingly'
    )


def dataset_meta(loaded: dict) -> dict:
    """Meta information of the training data in a checkpoint."""
    meta = loaded.get('meta', {})
    if 'dataset_meta' in meta:
        return {
            key.lower(): value for key, value in meta['dataset_meta'].items()
        }
    return dict(classes=meta['CLASSES']) if 'CLASSES' in meta else {}


def number_of_classes(model: nn.Module) -> int | None:
    """Classes that a model tells apart, where it says so.

    One that reads the names of its classes takes any number of them.
    """
    if any(hasattr(module, 'language_model') for module in model.modules()):
        return None
    refiner = find_refiner(model)
    if refiner is not None:
        return refiner[1].head.num_classes
    for name, module in model.named_modules():
        if 'bbox_head' in name and isinstance(
            getattr(module, 'num_classes', None), int
        ):
            return module.num_classes
    return None


def require_classes(
    model: nn.Module, classes: Iterable[str], where: str
) -> None:
    """A model and a data set must have the same number of classes."""
    ours, classes = number_of_classes(model), tuple(classes)
    if ours is not None and len(classes) != ours:
        raise ValueError(
            f'the model has num_classes={ours} and {where} has '
            f'{len(classes)} classes ({_listed(classes)}). Set num_classes '
            '(model.roi_head.bbox_head.num_classes in a two-stage detector) '
            'and metainfo = dict(classes=(...)) of every dataset to your '
            'classes'
        )


def require_classes_of_data(runner: Runner, split: str) -> None:
    """A data set's classes must be the model's, and in its annotations.

    mmdet leaves objects of other classes out without a word. The runner's
    loop is built here, as it would be a little later.

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
    except ValueError:  # of an empty data set, for one thing
        _require_categories(configs)
        raise
    if any(
        len(inner.cat_ids) != len(inner.metainfo['classes'])
        for inner in _datasets(loop.dataloader.dataset)
        if getattr(inner, 'cat_ids', None) is not None
    ):
        _require_categories(configs)


def _require_categories(dataset_configs: dict[str, dict]) -> None:
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
                f'have: {_listed(lacking)}. It has {_listed(found)}; set '
                'metainfo = dict(classes=(...)) of the dataset to those names'
            )


def require_files(config: Config, splits: Iterable[str]) -> None:
    """Annotation files and image folders must exist.

    Args:
        config: With ``<split>_dataloader`` and ``<split>_evaluator``.
        splits: Of 'train', 'val' and 'test', those used.
    """
    hint = (
        '. Set data_root (and ann_file, data_prefix) in the config or '
        'with --cfg-options; the shipped configs read the environment '
        'variables BCCD_ROOT and DIGITS_ROOT, and "python '
        'tools/make_digits.py data/digits" makes the digits'
    )
    for split in splits:
        loader = config.get(f'{split}_dataloader') or {}
        for where, dataset in _dataset_configs(
            loader.get('dataset'), f'{split}_dataloader.dataset'
        ):
            root = dataset.get('data_root') or ''
            ann_file = dataset.get('ann_file') or ''
            if _is_missing(root, ann_file):
                raise ValueError(
                    f'no annotation file {os.path.join(root, ann_file)} '
                    f'({where}.ann_file){hint}'
                )
            prefix = dataset.get('data_prefix') or {}
            images = prefix.get('img', prefix.get('img_path', ''))
            if isinstance(images, str) and _is_missing(root, images):
                raise ValueError(
                    f'no image folder {os.path.join(root, images)} '
                    f'({where}.data_prefix){hint}'
                )
        evaluators = config.get(f'{split}_evaluator') or []
        if isinstance(evaluators, dict):
            evaluators = [evaluators]
        for evaluator in evaluators:
            ann_file = evaluator.get('ann_file') or ''
            if _is_missing('', ann_file):
                raise ValueError(
                    f'no annotation file {ann_file} '
                    f'({split}_evaluator.ann_file){hint}'
                )


def require_levels(model: nn.Module) -> None:
    """The energy model must pool from maps that the detector has."""
    refiner = find_refiner(model)
    if refiner is None:
        return
    name = f'model.{refiner[0]}.roi_extractor'
    extractor = refiner[1].roi_extractor
    advice = f'. Leave {name} out to take it from the detector, or correct it'
    necks = [
        module
        for key, module in model.named_modules()
        if key.split('.')[-1] == 'neck'
    ]
    channels = getattr(necks[0], 'out_channels', None) if necks else None
    if isinstance(channels, int) and channels != extractor.out_channels:
        raise ValueError(
            f"the detector's feature maps have {channels} channels and "
            f'{name}.out_channels is {extractor.out_channels}{advice}'
        )
    levels = getattr(necks[0], 'num_outs', None) if necks else None
    if isinstance(levels, int) and levels < extractor.num_inputs:
        raise ValueError(
            f'the detector has {levels} levels and {name}.featmap_strides '
            f'names {extractor.num_inputs}: {extractor.featmap_strides}'
            f'{advice}'
        )
    for module in model.modules():
        theirs = getattr(
            getattr(module, 'bbox_roi_extractor', None),
            'featmap_strides',
            None,
        )
        count = extractor.num_inputs
        if (
            theirs
            and tuple(theirs)[:count]
            != extractor.featmap_strides[: len(theirs)]
        ):
            raise ValueError(
                f"the levels of the detector's box head have strides "
                f'{tuple(theirs)} and {name}.featmap_strides is '
                f'{extractor.featmap_strides}{advice}'
            )


def _stages(model: nn.Module) -> dict[str, Refinement]:
    """The stages of refinement, by their place in the model's config."""
    return {
        '.'.join(
            filter(None, ('model', name, 'refinement'))
        ): module.refinement
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'refinement', None), Refinement)
    }


def _is_refining(model: nn.Module) -> bool:
    stages = _stages(model)
    return not stages or any(stage.is_on for stage in stages.values())


def _switches(model: nn.Module) -> list[str]:
    return [
        f'{place}.{name}'
        for place, stage in _stages(model).items()
        for name in ('energy_nms', 'ascent', 'uncertainty')
        if getattr(stage, name)
    ]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')


def _datasets(dataset) -> Iterator:
    if hasattr(dataset, 'datasets'):
        for inner in dataset.datasets:
            yield from _datasets(inner)
    elif hasattr(dataset, 'dataset'):
        yield from _datasets(dataset.dataset)
    else:
        yield dataset


def _dataset_configs(dataset, where: str) -> Iterator[tuple[str, dict]]:
    if not isinstance(dataset, dict):
        return
    if 'dataset' in dataset:
        yield from _dataset_configs(dataset['dataset'], f'{where}.dataset')
    elif 'datasets' in dataset:
        for i, inner in enumerate(dataset['datasets']):
            yield from _dataset_configs(inner, f'{where}.datasets.{i}')
    elif not dataset.get('backend_args'):
        yield where, dataset


def _is_missing(root: str, path: str) -> bool:
    joined = os.path.join(root, path)
    return bool(path) and '://' not in joined and not os.path.exists(joined)
