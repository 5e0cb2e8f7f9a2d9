"""Changes to a config before a runner is built from it."""

import os
from datetime import timedelta

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device

from ..models.losses import MEASURED
from .config_types import custom_hooks

_LOOPS = dict(
    EpochBasedTrainLoop='ResumableEpochTrainLoop',
    IterBasedTrainLoop='ResumableIterTrainLoop',
)


def make_resumable(cfg: Config) -> None:
    """Make a training resume exactly, and keep its checkpoints complete.

    Subclasses replace mmengine's own loop and checkpoint hook. A loop or hook
    of the user stays.
    """
    loop = cfg.train_cfg
    if 'type' not in loop:
        by_epoch = loop.pop('by_epoch', True)
        loop.type = f'{"Epoch" if by_epoch else "Iter"}BasedTrainLoop'
    loop.type = _LOOPS.get(loop.type, loop.type)
    hooks = cfg.get('default_hooks') or {}
    hook = hooks.get('checkpoint', {})
    if (
        hook is not None
        and hook.get('type', 'CheckpointHook') == 'CheckpointHook'
    ):
        cfg.default_hooks = dict(
            hooks, checkpoint=dict(hook, type='AtomicCheckpointHook')
        )
    _import_engine(cfg)


def fit_at_the_end(cfg: Config) -> None:
    """Let a training of an energy model end with a fit of its density.

    A hook of the user's stays, and so do numbers in the config.
    """
    density = cfg.model.get('energy_model', {}).get('density', 'fitted')
    if (
        'energy_model' not in cfg.model
        or density != 'fitted'
        or custom_hooks(cfg, 'FitDensityHook')
    ):
        return
    _add_hook(cfg, 'FitDensityHook')
    _import_engine(cfg)


def _import_engine(cfg: Config) -> None:
    # Other tools read the config from the work dir and from checkpoints.
    custom = cfg.get('custom_imports') or {}
    imports = custom.get('imports', [])
    imports = [imports] if isinstance(imports, str) else list(imports)
    if 'mmdet_ebm.engine' not in imports:
        cfg.custom_imports = dict(
            custom, imports=[*imports, 'mmdet_ebm.engine']
        )


def measure_noise(cfg: Config) -> None:
    """Add the hook that measures the noise, if the config asks for it."""
    loss = cfg.model.get('energy_model', {}).get('loss', {})
    asks = MEASURED in (loss.get('sigmas'), loss.get('sigma'))
    if asks and not custom_hooks(cfg, 'MeasureNoiseHook'):
        _add_hook(cfg, 'MeasureNoiseHook')


def _add_hook(cfg: Config, name: str) -> None:
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), dict(type=name)]


def use_amp(cfg: Config) -> None:
    """Train in mixed precision: float16 on a GPU, bfloat16 on a CPU.

    Raises:
        SystemExit: If the device does not allow it, or the model on a CPU.
    """
    device = get_device()
    if device == 'mps':
        raise SystemExit(
            '--amp needs CUDA (or NPU, MLU, MUSA) or a CPU; this '
            'machine offers "mps". Train without --amp here.'
        )
    if device != 'cpu':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
        return
    if not trains_energy_alone(cfg):
        raise SystemExit(
            '--amp on a CPU needs an energy model on a frozen detector '
            '(model.freeze_detector=True): training a detector runs NMS, and '
            "mmcv's CPU version refuses bfloat16. Train without --amp here."
        )
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    cfg.optim_wrapper.pop('loss_scale', None)


def trains_energy_alone(cfg: Config) -> bool:
    """Whether the config has an energy model on a frozen detector."""
    return (
        'energy_model' in cfg.model
        and 'detector' in cfg.model
        and cfg.model.get('freeze_detector', True)
    )


def join_processes(cfg: Config) -> None:
    """Connect processes without a GPU, by gloo.

    mmengine's launchers and its DistributedDataParallel need a GPU for each
    process. If there is a GPU, or only one process, this does nothing.

    Raises:
        SystemExit: If torchrun did not start the processes.
    """
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu':
        return
    missing = {'RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'} - set(
        os.environ
    )
    if cfg.launcher != 'pytorch' or missing:
        raise SystemExit(
            'without a GPU, processes are started by torchrun and '
            '--launcher pytorch (tools/dist_train.sh does both); got '
            f'--launcher {cfg.launcher}'
            + (
                f' without {", ".join(sorted(missing))} in the environment'
                if missing
                else ''
            )
        )
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
    torch.distributed.init_process_group(
        'gloo', timeout=timedelta(seconds=timeout) if timeout else None
    )
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
