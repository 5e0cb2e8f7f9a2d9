"""Checkpoint files, read without running anything that they hold.

torch unpickles with an allow-list (``weights_only=True``). It lacks what
mmengine stores beside the weights: the history of losses, and numpy's arrays
and numbers. Their classes cannot simply be added, since numpy's read a state
that may ask for object fields, and mmengine's history takes functions from
the file and gives them to all histories. So each name in a file stands for a
class or function of this module here, which takes plain numbers only.
"""

import re
import zipfile
from collections.abc import Mapping
from os.path import expanduser
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch.hub import load_state_dict_from_url

# Methods that mmengine's HistoryBuffer pickles by name.
_STATISTICS = ('min', 'max', 'mean', 'current')


def restrict_loading() -> None:
    """Make mmengine read checkpoints, local ones and downloads, by torch's
    restricted unpickler, whatever its own defaults are.

    mmengine's own way to read a download runs what the file asks for.
    """
    names: dict[str, Any] = {
        'mmengine.logging.history_buffer.HistoryBuffer': _History,
        'builtins.getattr': _statistic_of,
        'numpy.ndarray': _Array,
        'numpy.dtype': _Dtype,
    }
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        names[f'{module}._reconstruct'] = _new_array
        names[f'{module}.scalar'] = _scalar
    torch.serialization.add_safe_globals(
        [(value, name) for name, value in names.items()]
    )
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    # What all of mmengine's schemes of addresses end in.
    mmengine.runner.checkpoint.load_url = _load_url


def load_from_local(filename: str, map_location=None):
    """mmengine's loader of local files; see there.

    Raises:
        zipfile.BadZipFile: If the file is damaged. torch does not look at the
            checksums that it writes, and gives other numbers.
    """
    path = expanduser(filename)
    if zipfile.is_zipfile(path):  # not what old versions of torch wrote
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(
                f'the file is damaged: {damaged} in it does not agree with '
                'its checksum; copy or download it again'
            )
    return _without_code(
        torch.load(path, map_location=map_location, weights_only=True)
    )


def _load_url(*args, **kwargs):
    return _without_code(
        load_state_dict_from_url(*args, **kwargs, weights_only=True)
    )


def _without_code(loaded):
    """Drop the config that mmcv stored: resuming would run its text."""
    if isinstance(loaded, dict) and isinstance(loaded.get('meta'), dict):
        loaded['meta'].pop('config', None)
    return loaded


def load_checkpoint_file(checkpoint: str | Path) -> dict:
    """Load a checkpoint file to the CPU.

    Returns:
        Weights by name, or ``state_dict`` that has them and ``meta``, which
        may have ``dataset_meta``. What the weights are is not checked.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint.
    """
    if '://' not in str(checkpoint) and not Path(checkpoint).is_file():
        raise FileNotFoundError(f'no checkpoint at {checkpoint}')
    try:
        loaded = CheckpointLoader.load_checkpoint(
            str(checkpoint), map_location='cpu'
        )
    except Exception as error:
        raise ValueError(
            f'{checkpoint} cannot be read as a checkpoint: {_reason(error)}'
        ) from error
    try:
        _require_structure(loaded)
    except ValueError as error:
        raise ValueError(
            f'{checkpoint} is not a checkpoint: {error}'
        ) from error
    return loaded


def _require_structure(loaded: Any) -> None:
    _require_names(loaded, 'the file')
    if 'state_dict' in loaded:
        _require_names(loaded['state_dict'], 'state_dict')
    weights = loaded.get('state_dict', loaded)
    versions = getattr(weights, '_metadata', {})
    for version in (versions, *_require_names(versions, 'its versions')):
        _require_names(version, 'its versions')
    meta = loaded.get('meta', {})
    _require_names(meta, 'meta')
    data = meta.get('dataset_meta', {})
    _require_names(data, 'meta.dataset_meta')
    for key, classes in (*data.items(), *meta.items()):
        if key.lower() == 'classes' and not (
            isinstance(classes, (list, tuple))
            and all(isinstance(name, str) for name in classes)
        ):
            raise ValueError(f'meta.{key} should be a list of names')


def _require_names(value: Any, where: str) -> list:
    """Require a dictionary with text as keys; gives its values."""
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise ValueError(f'{where} should hold values by name, is of {kind}')
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f'{where} has the key {key!r}, which is no text')
    return list(value.values())


def _reason(error: Exception) -> str:
    """The fault, without torch's advice to read the file without limits."""
    text = str(error).partition('WeightsUnpickler error: ')[2] or str(error)
    line = text.strip().partition('\n')[0]
    line = re.split(' Please use| In PyTorch', line, maxsplit=1)[0]
    return f'{type(error).__name__}: {line}'


class _Dtype:
    """What a file holds for ``numpy.dtype``: a plain number's, or nothing."""

    def __init__(self, kind: str, *_options) -> None:
        if not re.fullmatch(r'b1|[iu][1248]|f[248]', str(kind)):
            raise UnpicklingError(
                f'refused to read numbers of the kind {kind!r} from a '
                'checkpoint'
            )
        self.dtype = np.dtype(str(kind))

    def __setstate__(self, state: tuple) -> None:
        # Of the rest of the state, plain numbers have no use.
        _version, byte_order, *_ = state
        if byte_order not in ('<', '>', '|', '='):
            raise UnpicklingError(f'refused the byte order {byte_order!r}')
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array(np.ndarray):
    """Becomes an array of plain numbers; is pickled as one of numpy's own."""

    def __new__(cls) -> '_Array':
        return super().__new__(cls, 0, 'b')

    def __setstate__(self, state: tuple) -> None:
        version, shape, kind, fortran, data = state
        super().__setstate__((version, shape, _plain(kind), fortran, data))

    def __reduce_ex__(self, protocol) -> tuple:
        return self.view(np.ndarray).__reduce_ex__(protocol)


class _History(HistoryBuffer):
    """Becomes mmengine's own, with numbers and no functions of the file."""

    def __setstate__(self, state: dict) -> None:
        logs, counts = (state[f'_{name}_history'] for name in ('log', 'count'))
        if not (
            isinstance(logs, _Array)
            and isinstance(counts, _Array)
            and logs.shape == counts.shape == (len(logs),)
        ):
            raise UnpicklingError('a history of losses that is none')
        HistoryBuffer.__init__(self, max_length=int(state['max_length']))
        self._log_history = logs.view(np.ndarray)
        self._count_history = counts.view(np.ndarray)
        self.__class__ = HistoryBuffer


def _new_array(*_) -> _Array:
    return _Array()


def _scalar(kind: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, _plain(kind), count=1)[0]


def _plain(kind: _Dtype) -> np.dtype:
    if not isinstance(kind, _Dtype):
        raise UnpicklingError(f'refused {kind!r} in place of a dtype')
    return kind.dtype


def _statistic_of(owner, name: str) -> str:
    """In place of getattr, by which a history names its statistics."""
    if owner is not _History or name not in _STATISTICS:
        raise UnpicklingError(
            f'refused to read attribute {name!r} of {owner!r} while loading '
            'a checkpoint'
        )
    return name
