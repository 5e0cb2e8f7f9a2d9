"""What a training is: the published settings, and changes of them.

Source: "How to Train Your Energy-Based Model for Regression", BMVC 2020,
arXiv 2005.01698, section 4.1 and its supplement.
"""

import ast
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from mmdet_ebm import core

from .data import get_problem

# type: the class in mmdet_ebm.core; the rest: its arguments.
METHODS = {
    'ml_is': dict(type='MLIS', sigmas=(0.2, 1.6), num_samples=1024),
    'kld_is': dict(
        type='KLDIS', sigmas=(0.2, 1.6), num_samples=1024, sigma_gt=0.025
    ),
    'ml_mcmc': dict(
        type='MLMCMC', step_size=0.05, num_steps=16, num_samples=1024
    ),
    'nce': dict(type='NCE', sigmas=(0.1, 0.8), num_samples=1024),
    'nce_plus': dict(
        type='NCEPlus', sigmas=(0.1, 0.8), num_samples=1024, beta=0.025
    ),
    'sm': dict(type='SM'),
    'dsm': dict(type='DSM', sigma=0.2, num_samples=1024),
}
# Where data set 2 has other settings.
DATASET_2 = {
    'ml_mcmc': dict(step_size=0.0125),
    'dsm': dict(sigma=0.075),
}


def require(valid: bool, name: str, expected: str, value: Any) -> None:
    """Refuse a setting that is not valid.

    Raises:
        ValueError: Names what was expected and what was received.
    """
    if not valid:
        raise ValueError(f'{name} must be {expected}, got {value!r}')


def require_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 1."""
    valid = isinstance(value, int) and value >= 1
    require(valid, name, 'a positive whole number', value)


def _is_finite(value):
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class TrainingSettings:
    """What a training is, apart from the method. Defaults as published.

    Attributes:
        num_models: E.
        seed: Model i follows from the pair (seed, i).
        num_points: Training points of each model.
        batch_size: The last batch of an epoch may be smaller.
        num_epochs: Epochs.
        lr: Learning rate of Adam.
        width: Hidden width of the networks.
        label_noise: Standard deviation of Gaussian noise on the targets.

    Raises:
        ValueError: If a number is out of range.
    """

    num_models: int = 20
    seed: int = 0
    num_points: int = 2000
    batch_size: int = 32
    num_epochs: int = 75
    lr: float = 1e-3
    width: int = 10
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            'num_models',
            'num_points',
            'batch_size',
            'num_epochs',
            'width',
        ):
            require_count(name, getattr(self, name))
        lr, noise, seed = self.lr, self.label_noise, self.seed
        require(_is_finite(lr) and lr > 0, 'lr', 'positive and finite', lr)
        require(
            _is_finite(noise) and noise >= 0,
            'label_noise',
            'at least 0 and finite',
            noise,
        )
        require(
            isinstance(seed, int) and seed >= 0,
            'seed',
            'a whole number of at least 0',
            seed,
        )


@dataclass(frozen=True)
class Experiment:
    """What a cell of the study computes: results are equal if this is.

    Attributes:
        dataset: 1 or 2.
        method: ``dict(type=..., settings)``.
        training: See :class:`TrainingSettings`.
        grid_size: Points in x and in y of the grid for D_KL.
        num_best: Models whose D_KL is summed up as the best.

    Raises:
        ValueError: If something does not fit.
    """

    dataset: int
    method: dict[str, Any]
    training: TrainingSettings
    grid_size: int = 2048
    num_best: int = 5

    def __post_init__(self) -> None:
        get_problem(self.dataset)
        build_method(self.method)
        require_count('grid_size', self.grid_size)
        require_count('num_best', self.num_best)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return json.loads(json.dumps(asdict(self)))


def build_method(config: Mapping[str, Any]) -> nn.Module:
    """A training method from ``dict(type='NCEPlus', sigmas=..., ...)``.

    Raises:
        ValueError: If the type is unknown or its settings do not fit.
    """
    settings = dict(config)
    kind = settings.pop('type', None)
    kinds = [method['type'] for method in METHODS.values()]
    require(kind in kinds, 'method type', f'one of {", ".join(kinds)}', kind)
    try:
        return getattr(core, kind)(**settings)
    except TypeError as error:
        raise ValueError(f'settings of {kind}: {error}') from error


def load_experiment(
    method: str, dataset: int, options: Mapping[str, Any] | None = None
) -> Experiment:
    """A published experiment, with changes.

    Args:
        method: Name in ``METHODS``.
        dataset: 1 or 2.
        options: New values for ``method.NAME``, ``training.NAME``,
            ``grid_size`` and ``num_best``.

    Raises:
        ValueError: If an option names no setting, or a value does not fit.
    """
    require(method in METHODS, 'method', f'one of {list(METHODS)}', method)
    changes = DATASET_2.get(method, {}) if dataset == 2 else {}
    groups = {
        'method.': {**METHODS[method], **changes},
        'training.': asdict(TrainingSettings()),
        '': dict(grid_size=Experiment.grid_size, num_best=Experiment.num_best),
    }
    known = {
        prefix + name: (group, name)
        for prefix, group in groups.items()
        for name in group
        if name != 'type'
    }
    for key, value in (options or {}).items():
        require(key in known, 'setting', f'one of {", ".join(known)}', key)
        group, name = known[key]
        group[name] = value
    training = TrainingSettings(**groups['training.'])
    return Experiment(dataset, groups['method.'], training, **groups[''])


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Options from ``KEY=VALUE`` words; a value is a Python literal.

    Raises:
        ValueError: If a word is not of that form.
    """
    options = {}
    for word in words:
        key, equals, text = word.partition('=')
        try:
            if not (key and equals):
                raise ValueError
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                'expected KEY=VALUE with a number or another Python literal '
                f'as value, got {word!r}'
            ) from error
    return options
