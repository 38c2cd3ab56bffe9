"""Canary identities: how much one run of the mechanism gives away about who took part, against what is promised.

Every canary is an identity with an update of its own direction; a coin says for each whether it takes part (otherwise
it counts with zeros: the adjacency of the account). Whoever holds the decrypted steps correlates their sum with each
direction: the scores. Two readings of one run:

- counting (Steinke, Nasr and Jagielski 2023): guess in or out for the clearest scores; under (epsilon, delta) so many
  right ones are unlikely. It assumes nothing about the scores, and cannot show more than `countable`: with 256 canaries
  an epsilon of about 4 at 95 % confidence, whatever the mechanism does;
- fitting (Andrew et al. 2023): the distance of the two kinds' scores in standard deviations is the mu of a Gaussian
  mechanism, whose epsilon at delta is known. It reaches any epsilon, and holds as far as scores are normal with one
  deviation; here they are, as nothing but the mechanism's noise is added to them.

The attack is as strong as the account assumes: its mu is the account's. So the fit's 95 % lower bound lies above the
promise in one of twenty *sound* runs, and the verdict takes a bound that a sound run passes once in a million. Counting
stays far below the promise in sound runs, so its 95 % bound enters the verdict as it is; there is none at a millionth,
as delta alone allows more (2 n delta).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.settings import setting

Mechanism = Callable[[Sequence[np.ndarray]], np.ndarray]
"""One round of what is audited: the raw updates (D,) of all identities -> the published step (D,)."""

EpsilonOf = Callable[[float, float], float]
"""(mu, delta) -> epsilon of a Gaussian mechanism: `privacy.gaussian.epsilon_of`."""

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of the canaries about which the counting guesses; the best counts, at a confidence corrected for the choice.
"""


@dataclass(frozen=True)
class Canaries:
    """The audit's own settings. `seed` draws coins and directions, never the mechanism's noise."""

    canaries: int = setting(256, "identities that are canaries", low=50, high=100_000)
    rounds: int = setting(20, "T: rounds that the account covers", low=1, high=100_000)
    values: int = setting(2048, "D: values of an update; each canary has D / canaries of them to itself", low=50)
    length: float = setting(1.0, "L2 norm of a raw update: far above C, so that the clip is audited too", low=1e-9)
    confidence: float = setting(0.95, "of the bounds that are reported", low=0.5, high=0.999999)
    alarm: float = setting(1e-6, "probability with which a sound run may be called a violation", low=1e-12, high=0.05)
    seed: int = setting(0, "which canaries take part, in which directions", low=0)


@dataclass(frozen=True)
class Reading:
    """What the fit says about epsilon: the estimate, its lower bound `low` at the stated confidence, and `sure`, which
    a sound run passes with the alarm's probability only."""

    estimate: float
    low: float
    sure: float


@dataclass(frozen=True)
class Audit:
    """What one run showed. `mu`: distance of the scores in standard deviations; `counted`: lower bound at the
    stated confidence; `countable`: the most that counting could have shown, with all guesses right."""

    promised: float
    delta: float
    canaries: int
    included: int
    mu: float
    fitted: Reading
    counted: float
    countable: float

    @property
    def violation(self) -> bool:
        """Whether more was shown than is promised, beyond what chance does to a sound run."""
        return max(self.counted, self.fitted.sure) > self.promised


def audit(mechanism: Mechanism, promised: float, delta: float, epsilon_of: EpsilonOf,
          settings: Canaries | None = None) -> Audit:
    """Runs `settings.rounds` rounds of `mechanism` on canaries and compares with the `promised` epsilon at `delta`."""
    settings = settings or Canaries()
    if not promised > 0 or not 0 < delta < 1:
        raise AttackError(f"needs a promise to test, epsilon above 0 and delta in (0, 1), got {promised!r}, {delta!r}")
    taken, scores = play(mechanism, settings)
    miss = 1 - settings.confidence
    mu, lows = fit(scores[taken], scores[~taken], (miss, settings.alarm))
    fitted = Reading(epsilon_of(mu, delta), epsilon_of(lows[0], delta), epsilon_of(lows[1], delta))
    return Audit(promised, delta, taken.size, int(taken.sum()), mu, fitted, count(scores, taken, delta, miss),
                 count(np.where(taken, 1.0, -1.0), taken, delta, miss))


def play(mechanism: Mechanism, settings: Canaries) -> tuple[np.ndarray, np.ndarray]:
    """(who took part (n,) bool, scores (n,)): the correlation of all published steps with each canary's direction.

    Directions are random signs on values that no other canary uses: orthogonal, so that no canary adds to another's
    score.
    """
    n, size = settings.canaries, settings.values
    if size < n:
        raise AttackError(f"{n} canaries need directions of their own: values must be at least {n}, got {size}")
    rng = np.random.default_rng(settings.seed)
    taken = rng.random(n) < 0.5
    if not 2 <= taken.sum() <= n - 2:
        raise AttackError(f"{int(taken.sum())} of {n} canaries take part: needs two of each kind, use another seed")
    owner = np.arange(size) % n
    signs = rng.choice([-1.0, 1.0], size) / np.sqrt(np.bincount(owner, minlength=n))[owner]
    updates = [np.where(owner == i, signs, 0.0) * settings.length if taken[i] else np.zeros(size) for i in range(n)]
    total = np.zeros(size)
    for _ in range(settings.rounds):
        step = np.asarray(mechanism(updates), np.float64)
        if step.shape != (size,) or not np.isfinite(step).all():
            raise AttackError(f"the mechanism published a step of shape {step.shape}, needs ({size},), finite")
        total += step
    return taken, np.bincount(owner, signs * total, minlength=n)


def fit(inside: np.ndarray, outside: np.ndarray, misses: Sequence[float]) -> tuple[float, list[float]]:
    """(mu, its lower bounds, each missed with one of the probabilities `misses`), all at least 0.

    mu = (mean inside - mean outside) / pooled deviation; times sqrt(n1 n0 / (n1 + n0)) it is Student's t with that
    noncentrality, which gives bounds that are exact for normal scores of one deviation.
    """
    n1, n0 = inside.size, outside.size
    freedom = n1 + n0 - 2
    pooled = math.sqrt((((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()) / freedom)
    if pooled == 0:
        return math.inf, [math.inf] * len(misses)  # no noise at all
    root = math.sqrt(n1 * n0 / (n1 + n0))
    mu = float(inside.mean() - outside.mean()) / pooled
    return max(0.0, mu), [_noncentrality(mu * root, freedom, miss) / root for miss in misses]


def count(scores: np.ndarray, taken: np.ndarray, delta: float, miss: float) -> float:
    """The largest epsilon that right guesses about the clearest scores refute at error probability `miss` (0: none)."""
    halves = np.sort(scores)
    middle = (halves[:scores.size // 2].mean() + halves[scores.size // 2:].mean()) / 2
    clearest = np.argsort(-np.abs(scores - middle))
    right = np.cumsum((scores > middle)[clearest] == taken[clearest])
    guesses = [max(1, int(scores.size * share)) for share in SHARES]
    return max(_refuted(scores.size, n, int(right[n - 1]), delta, miss / len(SHARES)) for n in guesses)


def chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The most probable that `right` or more of `guesses` come true under (epsilon, delta): Steinke et al. 2023,
    theorem 5.2 (each canary in by a fair coin)."""
    accuracy = 1 / (1 + math.exp(-epsilon))
    exactly = stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy)
    tail = float(stats.binom.sf(right - 1, guesses, accuracy))
    slack = float((np.cumsum(exactly) / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, tail + 2 * canaries * delta * slack)


def _refuted(canaries: int, guesses: int, right: int, delta: float, miss: float) -> float:
    def excess(epsilon: float) -> float:
        return chance(canaries, guesses, right, epsilon, delta) - miss

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, 60.0)) if excess(60.0) > 0 else 60.0


def _noncentrality(t: float, freedom: int, miss: float) -> float:
    """The noncentrality, at least 0, at which a t as large as this has probability `miss`."""
    def excess(noncentrality: float) -> float:
        return float(stats.nct.sf(t, freedom, noncentrality)) - miss

    if t <= 0 or excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, t))
