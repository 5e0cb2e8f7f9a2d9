"""Training images like test images, for an energy model.

A box that a crop has cut ends where the object goes on, and its energy is
learned there. A detector that is trained gains more from crops than that
costs. An energy model on a frozen detector does not.
"""

import copy
from collections.abc import Iterator, Sequence

from mmengine.config import Config

from .config_types import type_of

# Steps that cut boxes, or put parts of several images together.
CROPS = frozenset(
    {
        'CachedMixUp',
        'CachedMosaic',
        'MinIoURandomCrop',
        'MixUp',
        'Mosaic',
        'RandomAffine',
        'RandomCenterCropPad',
        'RandomCrop',
        'RandomResizedCrop',
        'RandomShift',
    }
)
_RESIZES = frozenset({'Resize', 'RandomResize', 'RandomChoiceResize'})


def remove_crops(cfg: Config) -> list[str]:
    """Take the steps that crop out of the training pipelines of a config.

    Those of every data set and wrapper, and those that a hook switches to. Of
    a random choice between pipelines, those that crop go, if one remains. The
    size before a crop is not that of the test: where a resize came before
    one, that of the test pipeline takes its place.

    Args:
        cfg: Changed in place.

    Returns:
        Types of the steps that were taken out, each once.
    """
    like_test = next(
        (
            step
            for split in ('val', 'test')
            for owner in _owners(cfg.get(f'{split}_dataloader'))
            for step in owner['pipeline']
            if type_of(step) == 'Resize'
        ),
        None,
    )
    removed: list[str] = []
    for owner in _owners(cfg.get('train_dataloader')):
        owner['pipeline'] = _clean(owner['pipeline'], like_test, removed)
    for hook in cfg.get('custom_hooks') or ():
        if 'switch_pipeline' in hook:
            hook['switch_pipeline'] = _clean(
                hook['switch_pipeline'], like_test, removed
            )
    return list(dict.fromkeys(removed))


def _owners(config) -> Iterator[dict]:
    """The data sets and wrappers inside of a config that have a pipeline."""
    if not isinstance(config, dict):
        return
    if 'pipeline' in config:
        yield config
    for inner in (config.get('dataset'), *(config.get('datasets') or ())):
        yield from _owners(inner)


def _clean(
    steps: Sequence[dict], like_test: dict | None, removed: list[str]
) -> list[dict]:
    """Steps without crops; the types of these are added to ``removed``."""
    kept: list[dict] = []
    for step in map(copy.deepcopy, steps):
        if type_of(step) in CROPS:
            removed.append(type_of(step))
            if like_test is not None:
                kept = [
                    copy.deepcopy(like_test) if type_of(k) in _RESIZES else k
                    for k in kept
                ]
            continue
        inner = step.get('transforms')
        if type_of(step) == 'RandomChoice':
            _clean_choice(step, like_test, removed)
        elif isinstance(inner, (list, tuple, dict)):
            inner = [inner] if isinstance(inner, dict) else inner
            step['transforms'] = _clean(inner, like_test, removed)
            if not step['transforms']:
                continue
        kept.append(step)
    return kept


def _clean_choice(
    step: dict, like_test: dict | None, removed: list[str]
) -> None:
    """Drop the alternatives that crop, unless all of them do."""
    options = [
        option if isinstance(option, (list, tuple)) else [option]
        for option in step['transforms']
    ]
    weights = step.get('prob') or [1] * len(options)
    cleaned = []
    for option, weight in zip(options, weights):
        found: list[str] = []
        cleaned.append((_clean(option, like_test, found), weight, not found))
        removed += found
    whole = [each for each in cleaned if each[2]] or cleaned
    step['transforms'] = [option for option, *_ in whole]
    if step.get('prob'):
        total = sum(weight for _, weight, _ in whole)
        step['prob'] = [weight / total for _, weight, _ in whole]
