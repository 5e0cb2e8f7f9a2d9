"""One cell of the study: train an ensemble, resumably, and evaluate it."""

import json
import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from boltons.fileutils import atomic_save
from tqdm import tqdm

from mmdet_ebm import __version__

from .data import get_problem
from .evaluation import (
    evaluate,
    grid,
    learned_grid_logdensity,
    true_grid_density,
)
from .settings import Experiment, build_method, require_count
from .training import EnsembleTrainer

RESULT, CHECKPOINT = 'result.json', 'checkpoint.pth'
DENSITIES = 'densities.npz'
# An interruption leaves the old file, and perhaps a part of the new one.
_save = partial(atomic_save, overwrite_part=True)
# Pixels of pictures along x and y; a pixel is the mean over finer values of y,
# because the narrowest densities are narrower than a pixel.
PICTURE_SIZE = 256
VALUES_PER_PIXEL = 8


def run_experiment(
    experiment: Experiment,
    folder: Path,
    device: str = 'cpu',
    num_threads: int = 1,
    checkpoint_interval: int = 5,
    description: str = '',
) -> dict[str, Any]:
    """Run a cell to its end, unless its result lies there.

    An interrupted training continues from its last checkpoint and gives the
    numbers of an uninterrupted one.

    Args:
        experiment: What to compute.
        folder: Where the checkpoint, the result (JSON) and the densities of
            the model with the median D_KL (NPZ) are kept.
        device: Where to compute.
        num_threads: Models that compute at the same time, on a CPU.
        checkpoint_interval: Epochs between checkpoints. Each comes with a
            point of the D_KL curve, from every eighth value of x.
        description: Text of the progress bar.

    Returns:
        The result: ``experiment``, ``kl`` (D_KL of each model), ``best`` and
        ``all`` (their mean and std), ``history``, ``seconds_per_epoch``,
        versions.

    Raises:
        ValueError: If the folder holds another experiment.
    """
    require_count('checkpoint_interval', checkpoint_interval)
    folder.mkdir(parents=True, exist_ok=True)
    settings = experiment.to_dict()
    if (folder / RESULT).exists():
        result = json.loads((folder / RESULT).read_text())
        _check_same(folder, result['experiment'], settings)
        return result

    trainer = EnsembleTrainer(
        experiment.dataset,
        build_method(experiment.method),
        experiment.training,
        device,
        num_threads=num_threads,
    )
    history = dict(loss=[], kl={}, seconds=[])
    if (folder / CHECKPOINT).exists():
        state = torch.load(
            folder / CHECKPOINT, map_location=device, weights_only=True
        )
        _check_same(folder, state['experiment'], settings)
        trainer.load_state_dict(state['trainer'])
        history = state['history']

    problem = get_problem(experiment.dataset)
    divergence = partial(
        evaluate,
        trainer.network,
        problem,
        experiment.grid_size,
        num_threads=num_threads,
    )
    num_epochs = experiment.training.num_epochs
    with tqdm(
        total=num_epochs, initial=trainer.epoch, unit='epoch', desc=description
    ) as bar:
        while trainer.epoch < num_epochs:
            start = time.perf_counter()
            history['loss'].append(trainer.train_epoch().tolist())
            history['seconds'].append(time.perf_counter() - start)
            bar.update()
            if trainer.epoch % checkpoint_interval and (
                trainer.epoch < num_epochs
            ):
                continue
            kl = divergence(x_stride=8)
            history['kl'][trainer.epoch] = kl.tolist()
            bar.set_postfix_str(f'D_KL {kl.mean():.3f}')
            state = dict(
                experiment=settings,
                trainer=trainer.state_dict(),
                history=history,
            )
            with _save(str(folder / CHECKPOINT)) as file:
                torch.save(state, file)

    kl = divergence()
    _write_densities(folder / DENSITIES, trainer.network, problem, kl)
    result = dict(
        experiment=settings,
        **summarise(kl.tolist(), experiment.num_best),
        seconds_per_epoch=float(np.median(history['seconds'])),
        history=history,
        device=str(device),
        num_threads=num_threads,
        versions=dict(
            mmdet_ebm=__version__,
            torch=torch.__version__,
            python=platform.python_version(),
        ),
    )
    text = json.dumps(result, indent=1)
    with _save(str(folder / RESULT), text_mode=True) as file:
        file.write(text)
    return json.loads(text)


def summarise(kl: Sequence[float], num_best: int) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) of the best models and of all.

    A model that diverged (D_KL not finite) counts among the worst, and makes
    the figures over all models not finite.
    """
    ordered = sorted(value if np.isfinite(value) else np.inf for value in kl)
    return dict(
        kl=list(kl),
        best=_mean_and_std(ordered[:num_best]),
        all=_mean_and_std(ordered),
    )


def _mean_and_std(values: list[float]) -> dict[str, float]:
    if not np.isfinite(values).all():
        return dict(mean=np.inf, std=np.inf, count=len(values))
    std = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return dict(mean=float(np.mean(values)), std=float(std), count=len(values))


def _check_same(folder, found, expected):
    if found != expected:
        changed = sorted(
            key
            for key in found.keys() | expected.keys()
            if found.get(key) != expected.get(key)
        )
        raise ValueError(
            f'{folder} holds an experiment with other settings ('
            + '; '.join(
                f'{key}: {found.get(key)} there, {expected.get(key)} now'
                for key in changed
            )
            + '); choose another folder or remove this one'
        )


def _write_densities(path, network, problem, kl):
    """True and learned density, of the model with the median D_KL."""
    device = next(network.parameters()).device
    x = grid(PICTURE_SIZE, device)
    y = grid(PICTURE_SIZE * VALUES_PER_PIXEL, device)
    model = int(kl.argsort()[(len(kl) - 1) // 2])
    shares = dict(
        true=true_grid_density(problem, x, y),
        learned=learned_grid_logdensity(network, model, x, y).exp(),
    )
    arrays = {
        name: (share / (y[1] - y[0]))
        .view(PICTURE_SIZE, PICTURE_SIZE, -1)
        .mean(2)
        .cpu()
        .numpy()
        .astype(np.float32)
        for name, share in shares.items()
    }
    arrays.update(model=model, kl=float(kl[model]))
    with _save(str(path)) as file:
        np.savez_compressed(file, **arrays)
