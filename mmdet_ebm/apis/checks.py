"""Checks of models and checkpoints before a run.

They find errors that would appear late, or would give wrong results without a
message. Each check raises a ValueError that names the fault and a way to
correct it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..checkpoint_files import load_checkpoint_file
from ..models import EnergyDetector, EnergyModel
from ..models.detectors.checkpoint_keys import ENERGY_MODEL, rename_old_keys

EnergyWeights = Literal['required', 'if asked', 'optional']


@contextmanager
def exit_with_message() -> Iterator[None]:
    """End a command with the message of an error, without a traceback."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


def require_registered(config: Config) -> None:
    """Require that the type of the config's model is registered."""
    wanted = config.get('model', {}).get('type')
    if wanted is None:
        raise ValueError('the config has no model; name an mmdet config')
    if wanted == 'EnergyTwoStageDetector':
        raise ValueError(
            'EnergyTwoStageDetector is gone. EnergyDetector is the one way '
            'in, for every detector: see docs/add_to_your_detector.md. '
            'Checkpoints of the old class load as they are'
        )
    if isinstance(wanted, str) and MODELS.get(wanted) is None:
        raise ValueError(
            f'no model type {wanted} is known. If it is one of mmdet_ebm, add '
            "custom_imports = dict(imports=['mmdet_ebm.models', "
            "'mmdet_ebm.evaluation']) to the config; if it is your own, "
            'import its module there'
        )


def find_energy_model(model: nn.Module) -> EnergyModel | None:
    """The energy model of an ``EnergyDetector``, which may be wrapped."""
    detector = unwrapped(model)
    if isinstance(detector, EnergyDetector):
        return detector.energy_model
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without what distributed training or augmentation put around."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def require_energy_model(model: nn.Module) -> None:
    """There must be something to refine with."""
    if find_energy_model(model) is None:
        raise ValueError(
            f'the config has no energy model (its {type(model).__name__} '
            'is no EnergyDetector), so nothing would be refined. Name the '
            'config that the energy model was trained with; '
            'docs/add_to_your_detector.md shows how to write one'
        )


def require_weights(
    model: nn.Module,
    checkpoint: str | Path,
    energy: EnergyWeights = 'required',
    loaded: dict | None = None,
) -> None:
    """Load the weights, all that a model needs and in its shapes.

    mmengine merely warns, and leaves what does not fit at random: boxes would
    be refined, or an energy model trained, on noise. Weights that are not
    finite are refused as well.

    Args:
        model: Built from the config; may be wrapped.
        checkpoint: To be loaded.
        energy: Whether the energy model's own weights must be there:
            'required' where refinement is on, 'if asked' where its density
            asks f, 'optional' where they are about to be trained.
        loaded: What the checkpoint holds, if it has been read already.
    """
    if loaded is None:
        loaded = load_checkpoint_file(checkpoint)
    model = unwrapped(model)
    state = _state_of(loaded)
    if isinstance(model, EnergyDetector):
        rename_old_keys(state)
    switches = _stages_that_are_on(model)
    needs_energy = bool(switches) and energy != 'optional'
    complaints = _load(model, state)
    if needs_energy and energy == 'if asked':
        needs_energy = model.refinement.asks_f(model.energy_model.density)
    if needs_energy and not _energy_weights(state):
        raise ValueError(
            f'{checkpoint} holds no weights of an energy model (no key with '
            f'"{ENERGY_MODEL}"). Train one with this config, refine without '
            "one (tools/fit_density.py), use the plain detector's config, or "
            'switch all stages of its refinement off '
            f'(--cfg-options {" ".join(f"{s}=False" for s in switches)})'
        )
    may_lack = isinstance(model, EnergyDetector) and not needs_energy
    complaints = [
        complaint
        for complaint in complaints
        if not (may_lack and complaint.startswith(ENERGY_MODEL))
    ]
    if not complaints:
        _require_finite(checkpoint, state)
        return
    _require_classes_of(checkpoint, loaded, model)
    raise ValueError(
        f'{checkpoint} is not of the model of this config: '
        f'{len(complaints)} weights do not fit ('
        + '; '.join(complaints[:3])
        + '). Name the config that it was '
        'trained with, or the checkpoint of this one'
    )


def holds_energy_model(loaded: dict) -> bool:
    """Whether a checkpoint has weights of an energy model.

    The numbers of a density alone are none.
    """
    state = _state_of(loaded)
    rename_old_keys(state)
    return bool(_energy_weights(state))


def without_energy_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an ``EnergyDetector`` that never asks f."""
    left_out = set(_energy_weights(state))
    return {key: value for key, value in state.items() if key not in left_out}


def _state_of(loaded: dict) -> dict:
    """The weights of a checkpoint, by name."""
    return {
        re.sub('^(module[.])+', '', key): value
        for key, value in loaded.get('state_dict', loaded).items()
        if isinstance(value, Tensor) or key.endswith('_extra_state')
    }


def _energy_weights(state: Iterable[str]) -> list[str]:
    return [
        key
        for key in state
        if key.startswith(ENERGY_MODEL) and not key.endswith('_extra_state')
    ]


def require_resumable(checkpoint: str | Path) -> None:
    """A checkpoint must be of a training, which can go on from it."""
    loaded = load_checkpoint_file(checkpoint)
    counts = loaded.get('meta', {})
    stored = loaded.get('message_hub')
    lacking = [
        f'meta.{name}'
        for name in ('epoch', 'iter')
        if not isinstance(counts.get(name), int) or counts[name] < 0
    ]
    lacking += [
        f'message_hub.{name}'
        for name in ('log_scalars', 'runtime_info', 'resumed_keys')
        if not isinstance(stored, dict)
        or not isinstance(stored.get(name), dict)
    ]
    if lacking:
        raise ValueError(
            f'{checkpoint} cannot be resumed, it is not of a training of '
            f'mmengine (there is no {", ".join(lacking)}). To start a new '
            'training from its weights, set load_from instead of --resume'
        )


def _load(model: nn.Module, state: dict) -> list[str]:
    """Load the weights that fit; describe those that do not.

    Only loading shows what a module accepts, and the state will be loaded
    into this model anyway.
    """
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except Exception as error:  # modules read what a stranger may have written
        shapes = re.findall(
            r'size mismatch for (\S+): .*?\[(.*?)\].*?\[(.*?)\]', str(error)
        )
        if not shapes:
            return [' '.join(str(error).split())]
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


def _require_finite(checkpoint: str | Path, state: dict) -> None:
    """A training that diverged leaves weights that find nothing."""
    broken = [
        key
        for key, value in state.items()
        # The density's numbers check themselves, and may be infinite.
        if not key.endswith('_extra_state') and not value.isfinite().all()
    ]
    if broken:
        raise ValueError(
            f'{checkpoint} holds weights that are NaN or infinite, of a '
            f'training that diverged: {listed(broken)}. Take an earlier '
            'checkpoint, and train with a lower learning rate or clip '
            'gradients'
        )


def _require_classes_of(checkpoint, loaded: dict, model: nn.Module) -> None:
    classes = dataset_meta(loaded).get('classes')
    ours = number_of_classes(model)
    if classes is None or ours is None or len(classes) == ours:
        return
    raise ValueError(
        f'{checkpoint} was trained for {len(classes)} classes '
        f'({listed(classes)}) and the config has num_classes={ours}. Use a '
        f'detector trained for these classes, or set num_classes='
        f'{len(classes)} (model.detector.roi_head.bbox_head.num_classes in a '
        'two-stage detector) and the classes of the data set (metainfo) '
        'accordingly'
    )


def dataset_meta(loaded: dict) -> dict:
    """Meta information of the training data in a checkpoint; may be empty."""
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
    energy_model = find_energy_model(model)
    if energy_model is not None:
        return energy_model.head.num_classes
    for name, module in model.named_modules():
        if 'bbox_head' in name and isinstance(
            getattr(module, 'num_classes', None), int
        ):
            return module.num_classes
    return None


def require_classes(
    model: nn.Module, classes: Iterable[str], where: str
) -> None:
    """Require that a model and a data set have the same number of classes."""
    ours, classes = number_of_classes(model), tuple(classes)
    if ours is not None and len(classes) != ours:
        raise ValueError(
            f'the model has num_classes={ours} and {where} has '
            f'{len(classes)} classes ({listed(classes)}). Set num_classes '
            '(model.roi_head.bbox_head.num_classes in a two-stage detector) '
            'and metainfo = dict(classes=(...)) of every dataset to your '
            'classes'
        )


def _stages_that_are_on(model: nn.Module) -> list[str]:
    """The stages of refinement that run, by their place in the config."""
    if not isinstance(model, EnergyDetector):
        return []
    return [
        f'model.refinement.{name}'
        for name in ('energy_nms', 'ascent', 'uncertainty')
        if getattr(model.refinement, name)
    ]


def listed(names: Iterable[str]) -> str:
    """The first names of a list, for a message."""
    names = list(names)
    return ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
