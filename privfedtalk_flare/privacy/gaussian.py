"""The exact account of composed Gaussian mechanisms, each with everybody in it.

A composition of Gaussian mechanisms is again one: mu^2 = sum 1 / sigma_eff^2 and delta = Phi(mu/2 - eps/mu) -
e^eps Phi(-mu/2 - eps/mu) (Balle and Wang 2018; Dong, Roth and Su 2019). sigma 4, 20 rounds and delta 1e-5 give epsilon
4.9833; a bound by Renyi orders gives 5.38.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from scipy.optimize import brentq
from scipy.special import log_ndtr


class AccountError(ValueError):
    """A privacy account that cannot be made. The message names the value and its range."""


def composed_mu(noise_multipliers: Iterable[float]) -> float:
    """mu of a composition of Gaussians: sqrt(sum 1 / sigma^2)."""
    return math.sqrt(sum(sigma ** -2 for sigma in noise_multipliers))


def delta_of(epsilon: float, mu: float) -> float:
    """The exact delta of a Gaussian mechanism with parameter mu at epsilon >= 0."""
    if mu == 0:
        return 0.0
    first, second = log_ndtr(mu / 2 - epsilon / mu), epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return float(-math.exp(first) * math.expm1(min(0.0, second - first)))


def epsilon_of(mu: float, delta: float) -> float:
    """The exact epsilon of a Gaussian mechanism with parameter mu at delta in (0, 1)."""
    if not 0 < delta < 1:
        raise AccountError(f"delta must lie between 0 and 1, got {delta!r}")
    if not mu >= 0:
        raise AccountError(f"mu must be at least 0, got {mu!r}")
    if math.isinf(mu):
        return math.inf
    if mu == 0 or delta_of(0.0, mu) <= delta:
        return 0.0
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1  # the tail bound, always enough
    return float(brentq(lambda eps: delta_of(eps, mu) - delta, 0.0, high, xtol=1e-12, rtol=1e-13))


def noise_multiplier_for(epsilon: float, delta: float, rounds: int) -> float:
    """The smallest sigma with which `rounds` releases stay within (epsilon, delta)."""
    if not epsilon > 0 or not math.isfinite(epsilon) or rounds < 1:
        raise AccountError(f"needs epsilon above 0 and at least one round, got {epsilon!r} and {rounds!r}")
    low, high = 1e-9, 1.0
    while epsilon_of(high, delta) < epsilon:
        high *= 2
    mu = brentq(lambda m: epsilon_of(m, delta) - epsilon, low, high, xtol=1e-13, rtol=1e-13)
    return math.sqrt(rounds) / float(mu)
