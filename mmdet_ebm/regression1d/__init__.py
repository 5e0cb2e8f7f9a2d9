"""The paper's 1D regression problems on the same losses as detection.

Data -> networks -> training -> evaluation -> experiment. Imports no mmdet.
"""

from .data import PROBLEMS, Problem, draw_points, get_problem
from .evaluation import (
    evaluate,
    grid,
    kl_divergence,
    learned_grid_logdensity,
    true_grid_density,
)
from .experiment import Experiment, run_experiment, summarise
from .networks import EnsembleNetwork, PlainNetwork, ensemble_logdensity_fn
from .training import EnsembleTrainer, TrainingSettings, build_method

__all__ = [
    'EnsembleNetwork',
    'EnsembleTrainer',
    'Experiment',
    'PROBLEMS',
    'PlainNetwork',
    'Problem',
    'TrainingSettings',
    'build_method',
    'draw_points',
    'ensemble_logdensity_fn',
    'evaluate',
    'get_problem',
    'grid',
    'kl_divergence',
    'learned_grid_logdensity',
    'run_experiment',
    'summarise',
    'true_grid_density',
]
