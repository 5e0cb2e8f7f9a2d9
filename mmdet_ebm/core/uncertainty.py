r"""How a learned density spreads around a point, and how high it is there.

With a temperature T the density is :math:`p(y) = \exp(f(y) / T) / Z`. It is
taken as it is where samples of the noise lie around the point: farther away
the model was never trained, and nothing is claimed.

From M weighted samples (:func:`weigh_samples`), for every f:

.. math:: w_m \propto \exp(f(y_m) / T - \log q(y_m)), \qquad
          \log \hat Z = \log \tfrac{1}{M} \sum_m
          \exp(f(y_m) / T - \log q(y_m)) .

From second derivatives (:func:`laplace`), for a smooth f near its maximum:
the Gaussian of covariance :math:`T (-\nabla_y^2 f)^{-1}`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .types import LogDensityFn


@dataclass(frozen=True)
class SampleWeights:
    """M samples of N densities, weighted.

    Attributes:
        weights: (N, M), not negative, of sum 1 in each row.
        log_normaliser: (N,) estimates of log Z.
        effective_samples: (N,) number of equally weighted samples that would
            tell as much, :math:`1 / \\sum_m w_m^2`; from 1 to M.
    """
    weights: Tensor
    log_normaliser: Tensor
    effective_samples: Tensor

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and covariance of a function of the samples.

        .. math:: \mu = \sum_m w_m v_m, \qquad
                  \frac{\sum_m w_m (v_m - \mu)(v_m - \mu)^\top}
                  {1 - \sum_m w_m^2}

        Args:
            values: (M, E) or (N, M, E), the function at each sample.

        Returns:
            (N, E) and (N, E, E). The covariance is NaN where one sample has
            all of the weight.
        """
        mean = torch.einsum('nm,...me->ne' if values.dim() == 2 else
                            'nm,nme->ne', self.weights, values)
        deviation = values - mean[:, None]
        # As the n - 1 of equal weights: the mean was fitted to the samples.
        freedom = 1 - 1 / self.effective_samples
        covariance = torch.einsum('nm,nmd,nme->nde', self.weights, deviation,
                                  deviation) / freedom[:, None, None]
        return mean, torch.where((freedom > 1e-6)[:, None, None], covariance,
                                 torch.nan)


def weigh_samples(logdensity: Tensor,
                  noise_logprob: Tensor,
                  temperature: float = 1.0) -> SampleWeights:
    """Self-normalised importance weights.

    A sample at which f is not finite gets no weight. Where no sample is left,
    everything is NaN and ``effective_samples`` 0.

    Args:
        logdensity: (N, M) f at samples of q.
        noise_logprob: (M,) or (N, M) log q of them.
        temperature: T.

    Raises:
        ValueError: If ``temperature`` is not positive or shapes do not fit.
    """
    _check_temperature(temperature)
    if logdensity.dim() != 2 or (
            noise_logprob.shape not in (logdensity.shape,
                                        logdensity.shape[1:])):
        raise ValueError(
            'expected log-densities (N, M) and log q of shape (M,) or (N, M),'
            f' got {tuple(logdensity.shape)} and '
            f'{tuple(noise_logprob.shape)}')
    log_weights = torch.where(logdensity.isfinite(),
                              logdensity / temperature - noise_logprob,
                              -torch.inf)
    total = log_weights.logsumexp(1)
    # -inf - -inf is NaN: rows without any weight.
    weights = (log_weights - total[:, None]).exp()
    nothing = total == -torch.inf
    effective = 1 / weights.square().sum(1)
    return SampleWeights(
        weights, torch.where(nothing, torch.nan,
                             total - math.log(logdensity.shape[1])),
        torch.where(nothing, 0.0, effective))


def hessian(logdensity_fn: LogDensityFn, y: Tensor) -> Tensor:
    """Second derivatives of f at one point of each instance.

    Exact where automatic differentiation is: f must be smooth, a network of
    ReLUs has all of its curvature in kinks, which have none.

    Args:
        logdensity_fn: y (N, 1, D) -> f (N, 1). Instances must not influence
            each other's values.
        y: (N, D).

    Returns:
        (N, D, D), symmetric; without a graph.
    """
    with torch.inference_mode(False), torch.enable_grad():
        y = y.detach().clone()[:, None].requires_grad_()
        gradient, = torch.autograd.grad(logdensity_fn(y).sum(), y,
                                        create_graph=True)
        if not gradient.requires_grad:  # f is linear in y
            return y.new_zeros(len(y), y.shape[2], y.shape[2])
        # One derivative for each dimension, of all instances.
        rows = [
            torch.autograd.grad(gradient[..., d].sum(), y, retain_graph=True,
                                materialize_grads=True)[0][:, 0]
            for d in range(y.shape[2])
        ]
    second = torch.stack(rows, 1).detach()
    return (second + second.mT) / 2


@dataclass(frozen=True)
class Laplace:
    """Gaussians fitted to the curvature at N points.

    Attributes:
        covariance: (N, D, D).
        logprob: (N,) log-density of the Gaussian at its centre.
        clamped: (N,) bool, where the curvature did not say it all, see
            :func:`laplace`.
    """
    covariance: Tensor
    logprob: Tensor
    clamped: Tensor


def laplace(hessian: Tensor,
            max_sigma: float,
            temperature: float = 1.0) -> Laplace:
    r"""Gaussian of covariance :math:`T (-H)^{-1}`, none wider than known.

    Along an eigenvector of H in which f is flatter than a Gaussian of
    standard deviation ``max_sigma``, or even convex, the standard deviation is
    ``max_sigma`` and the point is marked: the model says less there than that
    the box is somewhere in the region it was trained on.

    Args:
        hessian: (N, D, D), symmetric.
        max_sigma: Largest standard deviation along any direction.
        temperature: T.

    Returns:
        The Gaussians; NaN where H is not finite (marked, too). On a GPU the
        eigenvalues make the host wait once.

    Raises:
        ValueError: If a number is not positive or the shape does not fit.
    """
    _check_temperature(temperature)
    if hessian.dim() != 3 or hessian.shape[1] != hessian.shape[2]:
        raise ValueError('expected Hessians (N, D, D), got '
                         f'{tuple(hessian.shape)}')
    if not 0 < max_sigma < math.inf:
        raise ValueError(f'max_sigma must be positive, got {max_sigma}')
    finite = hessian.isfinite().all(2).all(1)
    curvature = torch.where(finite[:, None, None], -hessian / temperature, 0.0)
    values, vectors = torch.linalg.eigh(curvature)
    least = max_sigma**-2
    clamped = (values < least).any(1)
    values = torch.where(finite[:, None], values.clamp(min=least), torch.nan)
    covariance = (vectors / values[:, None]) @ vectors.mT
    logprob = 0.5 * (values / (2 * math.pi)).log().sum(1)
    return Laplace(covariance, logprob, clamped)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError('temperature must be positive and finite, got '
                         f'{temperature}')
