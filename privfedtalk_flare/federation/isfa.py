"""Identity-Stable Federated Aggregation: how much each site's update weighs (the paper's ISFA, bounded).

The paper's w_k ~ n_k exp(gamma s_k) lets one site claim most of the model; here counts are capped at n_max, no site
may hold more than max_share / K, and a score or count out of its range is refused, never clamped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real

import numpy as np

SCORE_STEPS = 16
"""Released scores lie on a grid of 1/16: at most 17 values, about 4 bits a round."""


class ScalarError(ValueError):
    """A score or a count that cannot be used. The message names the value and its range."""


def check_scalars(score: object, count: object, *, max_clips: int, where: str = "reply") -> tuple[float, int]:
    """The (score, count) of a `metadata` reply, or `ScalarError`: a score lies on the grid of 1/16 in [0, 1], a count
    is an integer in [1, n_max]. What is out of range is refused, because clamping it would be a liar's best answer.
    """
    if isinstance(score, bool) or not isinstance(score, Real) or not -math.inf < score < math.inf:
        raise ScalarError(f"{where}: score {score!r} is not a finite number; it must lie in [0, 1]")
    if not 0 <= score <= 1:
        raise ScalarError(f"{where}: score {score!r} is out of range; it must lie in [0, 1]")
    if float(score) * SCORE_STEPS != int(float(score) * SCORE_STEPS):
        raise ScalarError(f"{where}: score {score!r} is not a multiple of 1/{SCORE_STEPS}; "
                          "it must be rounded on the site")
    return float(score), check_count(count, max_clips=max_clips, where=where)


def check_count(count: object, *, max_clips: int, where: str = "reply") -> int:
    """The count of a `metadata` or `counts` reply, or `ScalarError`."""
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise ScalarError(f"{where}: count {count!r} is not an integer; it must lie in [1, {max_clips}]")
    if not 1 <= count <= max_clips:
        raise ScalarError(f"{where}: count {count!r} is out of range; it must lie in [1, {max_clips}] (n_max)")
    return int(count)


def coarse(score: float) -> float:
    """`score` in [0, 1] rounded to 1/16: what a site may release as public metadata."""
    if not 0 <= score <= 1:
        raise ScalarError(f"score {score!r} is out of range; it must lie in [0, 1]")
    return round(float(score) * SCORE_STEPS) / SCORE_STEPS


def share_cap(sites: int, max_share: float) -> float | None:
    """The largest weight of one of K sites, max_share / K; None where no cap binds: at K <= 2, where any useful cap
    would make the weights equal, and where max_share >= K. Then a site holds what it claims, and the run says so.
    """
    if max_share < 1:
        raise ScalarError(f"max_share {max_share!r} must be at least 1: below it the weights cannot sum to 1")
    return None if sites <= 2 or max_share >= sites else max_share / sites


def isfa_weights(scores: Mapping[str, float], counts: Mapping[str, int], *, gamma: float, max_clips: int,
                 max_share: float) -> dict[str, float]:
    """w_k ~ min(n_k, n_max) exp(gamma s_k), sum 1, none above `share_cap`; what a cap frees is shared by the others in
    their own proportions (water-filling). With gamma 0, no cap and n_max not binding these are FedAvg's n_k / sum n.
    """
    if not scores or set(scores) != set(counts):
        raise ScalarError(f"weights need a score and a count of every site; scores of {sorted(scores)}, "
                          f"counts of {sorted(counts)}")
    best = max(scores.values())  # subtracted, so that a large gamma cannot overflow
    raw = {site: min(counts[site], max_clips) * math.exp(gamma * (scores[site] - best)) for site in sorted(scores)}
    return _capped(raw, share_cap(len(raw), max_share))


def uniform(sites: Iterable[str]) -> dict[str, float]:
    """1/K for every site."""
    names = sorted(sites)
    if not names:
        raise ScalarError("weights need at least one site")
    return {site: 1.0 / len(names) for site in names}


def sealed_weights(scores: Sequence[float], counts: Sequence[int], *, gamma: float, max_clips: int) -> np.ndarray:
    """(m,) float64: v_i = (1/m) (min(n_i, n_max) / n_max) exp(gamma (s_i - 1)) of a site's m identities.

    v_i <= 1/m and depends on identity i alone, so the sensitivity of sum_i v_i delta_i is C/m whatever the scores.
    """
    s, n = np.asarray(scores, np.float64), np.asarray(counts, np.float64)
    if s.shape != n.shape or s.ndim != 1 or s.size == 0:
        raise ScalarError(f"sealed weights need one score and one count an identity, got {s.shape} and {n.shape}")
    if not (np.isfinite(s).all() and (s >= 0).all() and (s <= 1).all() and (n >= 0).all()):
        raise ScalarError("sealed weights need scores in [0, 1] and counts of at least 0")
    return np.minimum(n, max_clips) / max_clips * np.exp(gamma * (s - 1.0)) / s.size


def _capped(raw: Mapping[str, float], cap: float | None) -> dict[str, float]:
    total = sum(raw.values())
    if cap is None:
        return {site: value / total for site, value in raw.items()}
    held: dict[str, float] = {}
    free = dict(raw)
    while True:
        left = 1.0 - cap * len(held)
        total = sum(free.values())
        over = [site for site, value in free.items() if value / total * left > cap]
        if not over:
            held.update({site: value / total * left for site, value in free.items()})
            return {site: held[site] for site in raw}
        for site in over:
            held[site] = cap
            del free[site]
        if not free:  # max_share == 1: everyone is at the cap
            return {site: 1.0 / len(raw) for site in raw}
