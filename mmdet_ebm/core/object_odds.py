r"""The probability that a detection shows an object of its class.

A detector gives many boxes near an object, and NMS keeps one of them. How many
there were, and how sure they were of the class, is evidence that the class
score does not hold. With q the class score, n the count of the cluster (the
detection itself included) and m its mass,

.. math:: \log \frac{P}{1 - P} = a \log \frac{q}{1 - q}
          + b \log(1 + n) + c \log(1 + m) + d .
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# a, b, c and d where clusters have no say: P is the class score.
CLASS_SCORE_ALONE = dict(
    object_score=1.0, object_count=0.0, object_mass=0.0, object_bias=0.0
)
# Class scores nearer to 0 or 1 than this count as if they were that near.
_EPS = 1e-6


def object_features(scores: Tensor, support: Tensor) -> Tensor:
    """What is weighed by a, b, c and d.

    Args:
        scores: (K,) class scores.
        support: (K, 2) count and mass of each cluster.

    Returns:
        (K, 4) in float32 or better; the last column is 1.
    """
    # float16 knows no number between 1 - eps and 1.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    columns = [scores.logit(_EPS), *support.to(scores).log1p().unbind(1)]
    return torch.stack([*columns, torch.ones_like(scores)], 1)


def object_probs(
    scores: Tensor, support: Tensor | None, weights: Mapping[str, float]
) -> Tensor:
    """P (K,) of detections.

    Args:
        scores: (K,) class scores.
        support: (K, 2) count and mass of each cluster. Without it the class
            scores are all there is, and P is the class score.
        weights: a, b, c and d, named as in ``CLASS_SCORE_ALONE``; with these
            P is the class score too, to the bit.
    """
    if support is None or weights == CLASS_SCORE_ALONE:
        return scores
    score, count, mass, _ = object_features(scores, support).unbind(1)
    odds = (
        weights['object_score'] * score
        + weights['object_count'] * count
        + weights['object_mass'] * mass
        + weights['object_bias']
    )
    return odds.sigmoid().to(scores)
