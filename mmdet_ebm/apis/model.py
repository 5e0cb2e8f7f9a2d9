"""Build a detector with its weights; refuse weights that do not fit."""

from pathlib import Path

import torch
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from torch import nn

from .checks import (
    dataset_meta,
    load_checkpoint_file,
    require_classes,
    require_registered,
    require_weights,
)


def build_model(
    config: str | Path | Config | None,
    checkpoint: str | Path,
    device: str | None = None,
    cfg_options: dict | None = None,
) -> nn.Module:
    """Build a detector with its weights, in eval mode.

    Args:
        config: Config file or config; None takes the one in the checkpoint.
        checkpoint: Weights, including those of the energy model.
        device: For example 'cuda:0'; None takes the first GPU, or the CPU if
            there is none.
        cfg_options: Changes to the config.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If config and checkpoint do not go together. Without the
            weights of the energy model, random energies would harm boxes.
    """
    loaded = load_checkpoint_file(checkpoint)
    if config is None:
        if 'cfg' not in loaded.get('meta', {}):
            raise ValueError(
                f'{checkpoint} does not hold its config; name the config file'
            )
        config = Config.fromstring(loaded['meta']['cfg'], '.py')
    elif isinstance(config, (str, Path)):
        config = Config.fromfile(config)
    if cfg_options:
        config.merge_from_dict(cfg_options)
    require_registered(config)
    if device is None:
        device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'cannot compute on {device}: {reason}') from error
    model = init_detector(
        config, str(checkpoint), device=device, cfg_options={}
    )
    require_weights(model, checkpoint)
    if 'classes' in dataset_meta(loaded):
        where = str(checkpoint)
    else:
        dataset = dict(config.test_dataloader.dataset, lazy_init=True)
        model.dataset_meta = dict(
            model.dataset_meta,
            classes=DATASETS.build(dataset).metainfo['classes'],
        )
        where = 'test_dataloader.dataset'
    require_classes(model, model.dataset_meta['classes'], where)
    return model
