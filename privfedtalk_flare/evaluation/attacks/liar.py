"""A lying site: what share of the model its claims buy, and how large an update of it the receivers still follow.

Under encryption nobody sees a site's update, so its clip cannot be enforced. Two things bound a liar: the weights,
computed from claims that are capped, and the norm check of those who decrypt the step. Both are given to this module as
functions, so that what is measured is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from privfedtalk_flare.evaluation.attacks import AttackError

Weigh = Callable[[Mapping[str, float], Mapping[str, int]], Mapping[str, float]]
"""(scores, counts) by site -> weights that sum to 1: `federation.isfa.isfa_weights` with its settings."""

Check = Callable[[np.ndarray], None]
"""A receiver's check of a step (D,), which raises a ValueError to refuse it: `privacy.step.check_step`."""

_LARGEST = 1e12


@dataclass(frozen=True)
class Shares:
    """The liar's share of a round: as an honest site, and with its lie."""

    honest: float
    lying: float


def shares(weigh: Weigh, scores: Mapping[str, float], counts: Mapping[str, int], liar: str, *, score: float,
           count: int) -> Shares:
    """What `liar`'s claim of `score` and `count` makes of its share, the others telling the truth."""
    if liar not in scores:
        raise AttackError(f"{liar!r} is no site of this round; the sites are {', '.join(sorted(scores))}")
    return Shares(weigh(scores, counts)[liar], weigh({**scores, liar: score}, {**counts, liar: count})[liar])


def followed(check: Check, step: np.ndarray) -> bool:
    """Whether a receiver follows `step`."""
    try:
        check(step)
    except ValueError:
        return False
    return True


def largest_update(check: Check, honest: np.ndarray, weight: float, clip_norm: float) -> float:
    """The largest update of a liar, in multiples of C, with which receivers still follow the step.

    `honest` (D,): the step without it, all sites' noise included; `weight`: its share of the sum. The liar spreads its
    update evenly over all coordinates, so that the bound on single ones does not catch it. To 0.1 %; 0 where receivers
    refuse the honest step already.
    """
    if not (0 < weight <= 1 and clip_norm > 0):
        raise AttackError(f"needs a weight in (0, 1] and a clip norm above 0, got {weight!r} and {clip_norm!r}")
    push = np.random.default_rng(0).choice([-1.0, 1.0], honest.size) * (weight * clip_norm / np.sqrt(honest.size))
    if not followed(check, honest):
        return 0.0
    passing, refused = 0.0, 1.0
    while followed(check, honest + refused * push):
        passing, refused = refused, refused * 2
        if refused > _LARGEST:
            raise AttackError("this check refuses no step at all: it bounds nothing")
    while refused - passing > 1e-3 * refused:
        middle = (passing + refused) / 2
        passing, refused = (middle, refused) if followed(check, honest + middle * push) else (passing, middle)
    return passing
