"""What the scores say about people: an observer of all rounds guesses who sits where, and who is the worst.

The server sees one score a site and round in `metadata` mode, under the site's name. The observer of this module is a
strong one: it knows how well each person scores in truth (say, from public videos of them) and only asks which site
holds whom, or which site's person scores worst. `coarse` scores are a function of the truth, so rounds only help it;
`noised` ones average out with the rounds, which is what their epsilon accounts for; `sealed` sends none.

Nothing here knows how far people's scores lie apart: `Spread` is an assumption of the caller, or comes from a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from privfedtalk_flare.evaluation.attacks import AttackError

ReleaseScore = Callable[[Sequence[float]], float | None]
"""The scores of a site's people -> what is published (`privacy.mechanism.release_score`), or None: nothing."""


@dataclass(frozen=True)
class Spread:
    """How scores vary: `mean` over people, `between` people (standard deviation of their true scores), and `within`
    one person from round to round. All in score units, in [0, 1]."""

    mean: float
    between: float
    within: float

    def __post_init__(self) -> None:
        if not (0 <= self.mean <= 1 and 0 <= self.between <= 1 and 0 <= self.within <= 1):
            raise AttackError(f"a spread of scores lies in [0, 1], got {self}")


@dataclass(frozen=True)
class Named:
    """How often the observer was right: `person` is the share of sites whose person it names, `worst` how often it
    points at the site of the worst one. `chance` is what guessing gets in both; `deviation` is the standard error of
    `worst` at most."""

    person: float
    worst: float
    chance: float
    deviation: float


def name_people(release: ReleaseScore, spread: Spread, *, sites: int, rounds: int, people: int = 1, trials: int = 200,
                seed: int = 0) -> Named:
    """Plays `trials` federations of `sites` sites with `people` each, over `rounds` rounds.

    With several people at a site the observer knows the mean of each group and names the group; the worst one is the
    person who scores lowest of all, and the site that holds them is what it points at.
    """
    if sites < 2 or min(rounds, people, trials) < 1:
        raise AttackError(f"needs two sites and one of each else, got sites {sites}, rounds {rounds}, people {people}, "
                          f"trials {trials}")
    rng = np.random.default_rng(seed)
    named = worst = 0.0
    for _ in range(trials):
        true = np.clip(rng.normal(spread.mean, spread.between, (sites, people)), 0, 1)
        seen = np.zeros(sites)
        silent = False
        for _ in range(rounds):
            scores = np.clip(true + rng.normal(0, spread.within, true.shape), 0, 1)
            published = [release(list(row)) for row in scores]
            silent = any(value is None for value in published)
            if silent:
                break
            seen += published
        if silent:
            seen = rng.random(sites)  # nothing was published: it can only guess
        seen = seen + rng.random(sites) * 1e-9  # ties are broken at random
        _, guess = linear_sum_assignment(np.abs(seen[:, None] / rounds - true.mean(1)[None, :])
                                         if not silent else rng.random((sites, sites)))
        named += float(np.mean(guess == np.arange(sites)))
        worst += float(np.argmin(seen) == np.argmin(true.min(1)))
    return Named(named / trials, worst / trials, 1 / sites, 0.5 / math.sqrt(trials))


def spread_of(scores: Sequence[Sequence[float]]) -> Spread:
    """The spread of a run's published scores: one row a site, one column a round, at least two of each.

    From scores on the grid of 1/16 no spread below about 1/55 (the grid's own, 1/16/sqrt(12)) can be told from 0.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise AttackError(f"needs the scores of at least two sites in at least two rounds, got shape {table.shape}")
    within = float(table.var(1, ddof=1).mean())
    between = max(0.0, float(table.mean(1).var(ddof=1)) - within / table.shape[1])
    return Spread(float(np.clip(table.mean(), 0, 1)), min(1.0, math.sqrt(between)), min(1.0, math.sqrt(within)))
