"""What a series of releases costs: the exact account of composed Gaussians, by who is looking.

Full participation is a plain composition of Gaussian mechanisms, which is again one: mu^2 = sum 1 / sigma_eff^2 and
delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) (Balle and Wang 2018; Dong, Roth and Su 2019). sigma 4, 20 rounds
and delta 1e-5 give epsilon 4.9833; a bound by Renyi orders gives 5.38.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import log_ndtr

VIEWS = ("receivers", "server", "server_and_site")
UNBOUNDED = "unbounded"
SCORES = ("coarse", "noised", "counts", "sealed", "none")
PUBLIC_METADATA = ("given the public metadata: each round's score (rounded to 1/16, at most about 4 bits) and clip "
                   "count are published and lie outside this promise")

PUBLIC_COUNTS = "given the public metadata: each round's clip count is published and lies outside this promise"


class AccountError(ValueError):
    """A privacy account that cannot be made. The message names the value and its range."""


@dataclass(frozen=True)
class Release:
    """What one round published about each identity of a site.

    `noise_multiplier` (sigma) None: no noise, nothing is promised. `score` says how the score travelled: `coarse`,
    `noised` (with `score_noise_multiplier`, sigma_s), `sealed` (inside the update), not at all but beside a public
    clip count (`counts`), or `none`.
    """

    noise_multiplier: float | None
    score: str = "none"
    score_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise AccountError(f"score {self.score!r} is unknown; the choices are {', '.join(SCORES)}")
        for name in ("noise_multiplier", "score_noise_multiplier"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise AccountError(f"{name} must be a finite number above 0, got {value!r}")
        if (self.score == "noised") != (self.score_noise_multiplier is not None):
            raise AccountError("score_noise_multiplier is set exactly when the score is 'noised', got "
                               f"score {self.score!r} and score_noise_multiplier {self.score_noise_multiplier!r}")


@dataclass(frozen=True)
class View:
    """Epsilon at delta for one observer; `epsilon` is math.inf where nothing is promised. `words` go beside it."""

    epsilon: float
    delta: float
    words: str

    @property
    def value(self) -> float | str:
        """Epsilon for JSON and tables: a number, or "unbounded"."""
        return self.epsilon if math.isfinite(self.epsilon) else UNBOUNDED


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


def views(releases: Sequence[Release], delta: float, *, encrypted: bool = True,
          server_learns_theta: bool = True) -> dict[str, View]:
    """Epsilon of all `releases` together, for each observer (PROTOCOL, "The privacy account").

    `receivers`: the other sites and whoever is given the adapter. `server_and_site`: the server with one colluding
    site, which holds the shared key. `server`: the server alone; it sees the scores only, as long as the encryption
    holds and nothing derived from theta (metrics, SNR) is sent to it; otherwise its view is the receivers'.
    """
    words = []
    if any(r.score == "coarse" for r in releases):
        words.append(PUBLIC_METADATA)
    elif any(r.score in ("noised", "counts") for r in releases):
        words.append(PUBLIC_COUNTS)
    if any(r.noise_multiplier is None for r in releases):
        bare = sum(r.noise_multiplier is None for r in releases)
        words.append(f"{bare} of {len(releases)} releases about these people carried no noise")
        everyone = server = math.inf
    else:
        scores = [r.score_noise_multiplier for r in releases if r.score_noise_multiplier is not None]
        everyone = epsilon_of(composed_mu([*(r.noise_multiplier for r in releases), *scores]), delta)
        server = epsilon_of(composed_mu(scores), delta)
    text = "; ".join(words)
    if encrypted and not server_learns_theta:
        alone = View(server, delta, "; ".join([*words, "as long as the encryption holds"]))
    else:
        why = "metrics of the shared adapter are sent to it" if encrypted else "nothing is encrypted"
        alone = View(everyone, delta, "; ".join([*words, f"the receivers' view, because {why}"]))
    return {"receivers": View(everyone, delta, text), "server": alone, "server_and_site": View(everyone, delta, text)}
