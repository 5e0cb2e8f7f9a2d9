"""Build a detector with its weights; refuse weights that do not fit."""

import warnings
from pathlib import Path

import torch
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from torch import nn

from ..checkpoint_files import load_checkpoint_file
from .checks import (
    EnergyWeights,
    dataset_meta,
    require_classes,
    require_registered,
    require_weights,
)


def usable_device(device: str | None = None) -> str:
    """The device; None takes the first GPU, or the CPU if there is none.

    Raises:
        ValueError: If nothing can be computed there.
    """
    if device is None:
        device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'cannot compute on {device}: {reason}') from error
    return device


def build_model(
    config: str | Path | Config | None,
    checkpoint: str | Path,
    device: str | None = None,
    cfg_options: dict | None = None,
    run_stored_config: bool = False,
    energy: EnergyWeights = 'required',
    loaded: dict | None = None,
) -> nn.Module:
    """Build a detector with its weights, in eval mode.

    Args:
        config: Config file or config; None takes the one in the checkpoint,
            if ``run_stored_config`` is True.
        checkpoint: Weights, including those of the energy model.
        device: For example 'cuda:0'; None takes the first GPU, or the CPU if
            there is none.
        cfg_options: Changes to the config.
        run_stored_config: Run the text in the checkpoint as a config, which
            is Python code. Only for checkpoints whose maker you trust.
        energy: Whether the checkpoint must hold weights of the energy model,
            see ``checks.require_weights``.
        loaded: What the checkpoint holds, if it has been read already.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If config and checkpoint do not go together. Without the
            weights of the energy model, random energies would harm boxes.
    """
    if loaded is None:
        loaded = load_checkpoint_file(checkpoint)
    if config is None:
        text = loaded.get('meta', {}).get('cfg')
        if not isinstance(text, str):
            raise ValueError(
                f'{checkpoint} does not hold its config; name the config file'
            )
        if not run_stored_config:
            raise ValueError(
                f'no config is named, and the one in {checkpoint} is code, '
                'which would be run. Name the config file; or, if you trust '
                'whoever made the checkpoint, set run_stored_config=True'
            )
        config = Config.fromstring(text, '.py')
    elif isinstance(config, (str, Path)):
        config = Config.fromfile(config)
    if cfg_options:
        config.merge_from_dict(cfg_options)
    require_registered(config)
    device = usable_device(device)
    with warnings.catch_warnings(record=True):
        # It says that there is no checkpoint; the weights come below.
        model = init_detector(config, device=device, cfg_options={})
    require_weights(model, checkpoint, energy, loaded)
    meta = dataset_meta(loaded)
    if 'classes' in meta:
        where = str(checkpoint)
    else:
        dataset = dict(config.test_dataloader.dataset, lazy_init=True)
        meta = DATASETS.build(dataset).metainfo
        where = 'test_dataloader.dataset'
    model.dataset_meta = {**model.dataset_meta, **meta}
    require_classes(model, model.dataset_meta['classes'], where)
    return model
