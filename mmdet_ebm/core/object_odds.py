r"""The probability that a detection shows an object of its class.

A detector gives many boxes near an object, and NMS keeps one of them. How many
there were, and how sure they were of the class, is evidence that the class
score does not hold. With q the class score, n the count of the cluster and m
its mass,

.. math:: \log \frac{P}{1 - P} = a \log \frac{q}{1 - q}
          + b \log(1 + n) + c \log(1 + m) + d .
"""

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
        (K, 4); the last column is 1.
    """
    columns = scores.new_ones(len(scores), 4)
    columns[:, 0] = scores.logit(_EPS)
    columns[:, 1:3] = support.log1p()
    return columns


def object_probs(
    scores: Tensor,
    support: Tensor,
    object_score: float,
    object_count: float,
    object_mass: float,
    object_bias: float,
) -> Tensor:
    """P (K,) of detections.

    Args:
        scores: (K,) class scores.
        support: (K, 2) count and mass of each cluster.
        object_score: a.
        object_count: b.
        object_mass: c.
        object_bias: d.
    """
    weights = scores.new_tensor(
        [object_score, object_count, object_mass, object_bias]
    )
    return (object_features(scores, support) @ weights).sigmoid()
