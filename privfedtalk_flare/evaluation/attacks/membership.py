"""Membership inference from losses: was this person among those the adapter was trained on?

The attacker computes the adapter's loss on each person's clips (better: the loss with the adapter minus that without,
which takes out how hard a person is) and takes low ones for members (Yeom et al. 2018). Reported as the area under the
curve with DeLong's interval, and as the true positive rate at 1 % false positives (Carlini et al. 2022), because an
average can hide that a few people are found with certainty.

An adapter that went along a person's own update has a lower loss on that person's clips. `losses_along` takes that fall
to first order from the update that the attacker would have trained on the clips, less what it owes to the updates of
the others, and needs no further look at the clips. It tells far more than the loss itself, of which how hard a clip is
makes up nearly all: on 200 people, without noise, losses that were calibrated by a reference adapter reach AUC .58,
and this reaches .92 (`tests/benchmarks/membership.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from privfedtalk_flare.evaluation.attacks import AttackError

_LEAST = 20


@dataclass(frozen=True)
class Membership:
    """`auc` with its interval [`low`, `high`]: .5 is guessing. `caught`: the true positive rate at the largest
    threshold with at most `false_positives` of the others taken for members; `most_caught` is its exact upper bound.
    """

    auc: float
    low: float
    high: float
    caught: float
    most_caught: float
    false_positives: float
    members: int
    others: int


def infer(member_losses: np.ndarray, other_losses: np.ndarray, *, confidence: float = 0.95,
          false_positives: float = 0.01) -> Membership:
    """How well losses (n,) of members and (k,) of others tell the two apart; at least 20 of each.

    With fewer than 1 / `false_positives` others no false positive at all is allowed. Raises `AttackError` on losses
    that are not finite.
    """
    inside, outside = (-np.asarray(losses, np.float64) for losses in (member_losses, other_losses))
    for name, values in (("members", inside), ("others", outside)):
        if values.ndim != 1 or values.size < _LEAST or not np.isfinite(values).all():
            raise AttackError(f"{name}: needs at least {_LEAST} finite losses, one a person, got shape {values.shape}")
    if not (0 < confidence < 1 and 0 < false_positives < 1):
        raise AttackError(f"confidence and false_positives lie in (0, 1), got {confidence!r} and {false_positives!r}")
    auc, deviation = delong(inside, outside)
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * deviation
    allowed = int(false_positives * outside.size)
    threshold = np.sort(outside)[::-1][allowed]  # `allowed` of the others lie above it
    caught = int((inside > threshold).sum())
    miss = (1 - confidence) / 2
    most = 1.0 if caught == inside.size else float(stats.beta.ppf(1 - miss, caught + 1, inside.size - caught))
    return Membership(auc, max(0.0, auc - reach), min(1.0, auc + reach), caught / inside.size, most, false_positives,
                      inside.size, outside.size)


def losses_along(theta: np.ndarray, guesses: np.ndarray, noise_std: float) -> np.ndarray:
    """What each person's own part in a published adapter (D,) takes off the loss, as losses (n,): lower for members.

    The attacker guesses everybody's update, (n, D), holds half of the people for members, whose updates were averaged,
    and knows that the average carries noise of `noise_std` on each coordinate. The parts are then those of linear least
    squares under that prior: ridge regression of the adapter on the guesses. Raises `AttackError` where shapes do not
    fit.
    """
    n = len(guesses)
    if guesses.ndim != 2 or theta.shape != guesses.shape[1:] or n < _LEAST:
        raise AttackError(f"guesses: needs at least {_LEAST} updates as long as the adapter, {theta.shape}, got shape "
                          f"{guesses.shape}")
    common = guesses.mean(axis=0, dtype=np.float64)  # what all have in common tells nothing of one person
    alone = guesses - common
    products = alone @ alone.T
    ridge = (noise_std * n) ** 2 + 1e-2 * np.trace(products) / n  # parts are 0 or 2 / n; guesses are never exact
    return -np.linalg.solve(products + ridge * np.eye(n), alone @ (theta - common))


def delong(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """(AUC, its standard deviation) of scores (n,) and (k,), higher inside (DeLong et al. 1988, by ranks).

    AUC = P(inside > outside) + P(equal) / 2. Where the two do not overlap at all DeLong's deviation is 0, which no
    sample supports; then that of one pair in (n + 1)(k + 1) out of order is taken.
    """
    n, k = inside.size, outside.size
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    above = (ranks[:n] - stats.rankdata(inside)) / k  # share of the others below each member
    below = 1 - (ranks[n:] - stats.rankdata(outside)) / n
    auc = float(above.mean())
    variance = float(above.var(ddof=1)) / n + float(below.var(ddof=1)) / k
    if variance == 0 and auc in (0.0, 1.0):
        variance = 1.0 / ((n + 1) * (k + 1))
    return auc, math.sqrt(variance)
