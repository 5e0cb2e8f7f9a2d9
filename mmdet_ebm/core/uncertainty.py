r"""How a learned density spreads around a point, and how high it is there.

With a temperature T the density is :math:`p(y) = \exp(f(y) / T) / Z` in a
ball around the point, and zero outside: there the model was not trained, and
nothing that it says is meant.

From M weighted samples (:func:`sample_density`), for every f:

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
from torch.distributions import MultivariateNormal

from .noise import noise_logprob
from .types import LogDensityFn

# The second round's proposal is wider than what the first one found: one that
# is too narrow does more harm than one that is too wide.
_INFLATION = 1.5


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
        mean = torch.einsum(
            'nm,...me->ne' if values.dim() == 2 else 'nm,nme->ne',
            self.weights,
            values,
        )
        deviation = values - mean[:, None]
        # As the n - 1 of equal weights: the mean was fitted to the samples.
        freedom = 1 - 1 / self.effective_samples
        covariance = (
            torch.einsum('nm,nmd,nme->nde', self.weights, deviation, deviation)
            / freedom[:, None, None]
        )
        return mean, torch.where(
            (freedom > 1e-6)[:, None, None], covariance, torch.nan
        )


def weigh_samples(
    logdensity: Tensor, noise_logprob: Tensor, temperature: float = 1.0
) -> SampleWeights:
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
        noise_logprob.shape not in (logdensity.shape, logdensity.shape[1:])
    ):
        raise ValueError(
            'expected log-densities (N, M) and log q of shape (M,) or (N, M),'
            f' got {tuple(logdensity.shape)} and '
            f'{tuple(noise_logprob.shape)}'
        )
    log_weights = torch.where(
        logdensity.isfinite(),
        logdensity / temperature - noise_logprob,
        -torch.inf,
    )
    total = log_weights.logsumexp(1)
    # -inf - -inf is NaN: rows without any weight.
    weights = (log_weights - total[:, None]).exp()
    nothing = total == -torch.inf
    effective = 1 / weights.square().sum(1)
    return SampleWeights(
        weights,
        torch.where(nothing, torch.nan, total - math.log(logdensity.shape[1])),
        torch.where(nothing, 0.0, effective),
    )


@dataclass(frozen=True)
class DensitySamples:
    """Samples of N densities, and what made them.

    Attributes:
        offsets: (N, M, D) samples, relative to the centres.
        logdensity: (N, M) f there; minus infinity outside of the ball.
        noise_logprob: (N, M) log of the density they were drawn from.
    """

    offsets: Tensor
    logdensity: Tensor
    noise_logprob: Tensor

    def weigh(self, temperature: float = 1.0) -> SampleWeights:
        """Weights for exp(f / T); see :func:`weigh_samples`."""
        return weigh_samples(self.logdensity, self.noise_logprob, temperature)


def sample_density(
    logdensity_fn: LogDensityFn,
    centres: Tensor,
    wide: Tensor,
    normal: Tensor,
    sigmas: Tensor,
    temperature: float = 1.0,
    radius: float = 3.0,
) -> DensitySamples:
    r"""Samples around centres, half of them where the density turned out high.

    The first round are the offsets ``wide`` from the mixture of Gaussians of
    widths ``sigmas``, the same for all instances. The second round comes from
    a Gaussian with the mean and (inflated) covariance that the first one
    found. All are weighted by the mixture of both proposals, so each round
    covers for the other.

    Args:
        logdensity_fn: y (N, S, D) -> f (N, S).
        centres: (N, D).
        wide: (A, D) offsets drawn from the mixture of ``sigmas``.
        normal: (B, D) standard normal draws; without any there is one round.
        sigmas: (K, D) or (K, 1) widths.
        temperature: T.
        radius: Radius of the ball in which the density is taken, in units of
            the largest width of each dimension.

    Returns:
        M = A + B samples of each instance; without a graph, and without
        reading a value back to the host.

    Raises:
        ValueError: If a number is not positive.

    Source: the mixture of all proposals in the denominator is Veach and
    Guibas' balance heuristic (SIGGRAPH 1995); adapting the second round to the
    first is population Monte Carlo (Cappe et al., 2004).
    """
    _check_temperature(temperature)
    if not radius > 0:
        raise ValueError(f'radius must be positive, got {radius}')
    largest = sigmas.amax(0)

    def evaluate(offsets: Tensor) -> Tensor:
        inside = (offsets / largest).square().sum(-1) <= radius**2
        logdensity = logdensity_fn(centres[:, None] + offsets)
        return torch.where(inside, logdensity, -torch.inf)

    with torch.no_grad():
        offsets = wide.expand(len(centres), -1, -1)
        wide_logprob = noise_logprob(wide, sigmas).expand(len(centres), -1)
        found = DensitySamples(offsets, evaluate(offsets), wide_logprob)
        if len(normal) == 0 or len(centres) == 0:
            return found
        mean, covariance = found.weigh(temperature).moments(wide)
        proposal = _second_proposal(mean, covariance, sigmas.amin() / 4)
        adapted = proposal.loc[:, None] + normal @ proposal.scale_tril.mT
        everything = torch.cat([offsets, adapted], 1)
        share = len(wide) / (len(wide) + len(normal))
        logprob = torch.logaddexp(
            noise_logprob(everything, sigmas) + math.log(share),
            proposal.log_prob(everything.transpose(0, 1)).mT
            + math.log(1 - share),
        )
        return DensitySamples(
            everything,
            torch.cat([found.logdensity, evaluate(adapted)], 1),
            logprob,
        )


def _second_proposal(
    mean: Tensor, covariance: Tensor, least: Tensor
) -> MultivariateNormal:
    """N Gaussians; narrow ones at the centre where nothing is known."""
    floor = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    covariance = _INFLATION * covariance.nan_to_num(0.0) + floor * least**2
    # cholesky_ex and no validation: the host does not wait for a verdict.
    return MultivariateNormal(
        mean.nan_to_num(0.0),
        scale_tril=torch.linalg.cholesky_ex(covariance).L,
        validate_args=False,
    )


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
        (gradient,) = torch.autograd.grad(
            logdensity_fn(y).sum(), y, create_graph=True
        )
        if not gradient.requires_grad:  # f is linear in y
            return y.new_zeros(len(y), y.shape[2], y.shape[2])
        # One derivative for each dimension, of all instances.
        rows = [
            torch.autograd.grad(
                gradient[..., d].sum(),
                y,
                retain_graph=True,
                materialize_grads=True,
            )[0][:, 0]
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


def laplace(
    hessian: Tensor, max_sigma: float, temperature: float = 1.0
) -> Laplace:
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
        raise ValueError(
            f'expected Hessians (N, D, D), got {tuple(hessian.shape)}'
        )
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
        raise ValueError(
            f'temperature must be positive and finite, got {temperature}'
        )


def fit_deviations(errors: Tensor, std: Tensor) -> tuple[float, float]:
    r"""How deviations must be changed to agree with errors.

    The factor a and the power b of largest likelihood, if errors are Gaussian
    with deviations :math:`a s^b`. With b fixed, :math:`a^2` is the mean of
    :math:`(e / s^b)^2`. A constant deviation is b = 0, so the result is never
    less likely than that.

    Args:
        errors: Of any shape, relative to the boxes.
        std: s, of the same shape, relative to the boxes; pairs that are not
            finite, or without a deviation, are left out.

    Returns:
        a and b; 1 and 1 where nothing is left or all errors are zero.
    """
    known = errors.isfinite() & std.isfinite() & (std > 0)
    e, log_std = errors[known].double(), std[known].double().log()
    if not e.any():
        return 1.0, 1.0
    powers = torch.linspace(0, 1.5, 31, dtype=e.dtype, device=e.device)
    logs = powers[:, None] * log_std
    factors = (e * (-logs).exp()).square().mean(1).sqrt()
    # The squares are 1 in the mean, whatever the power.
    best = int((factors.log() + logs.mean(1)).argmin())
    return float(factors[best]), float(powers[best])
