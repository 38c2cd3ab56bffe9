"""Adaptive clipping: C follows a quantile of the updates' norms (Andrew, Thakkar, McMahan and Ramaswamy 2021).

In every round each identity's bit says whether its update was within C; a site sends the noised mean of its bits beside
its update, and the server moves C for the next round: C <- C exp(-step (share within C - quantile)). C is public, and
so are the bits once they are noised; the account charges them with the update (sampled.effective_noise_multiplier).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.mechanism import MechanismError

HALF = 0.5
"""A bit is +1/2 within C, -1/2 above, 0 for who was not sampled or has no finite update: taking a person out moves the
sum by 1/2."""
DIGITS = 3
"""Decimals of a released mean of bits: it is noise for the most part, and may carry nothing else."""


def release_bit(vectors: Sequence[np.ndarray], taking_part: Sequence[bool], clip_norm: float, *,
                noise_multiplier: float, sampling: float = 1.0) -> float:
    """The mean of a site's m bits plus N(0, (sigma_b / (q m))^2), in [-1/2, 1/2].

    `vectors` are the raw updates (D,), `taking_part` (m,) says whose count, `sampling` is q: the mean is over the q m
    people expected. Cutting the noised mean to its range costs no privacy.
    """
    if len(vectors) != len(taking_part) or not vectors:
        raise MechanismError(f"bits need one update an identity, got {len(vectors)} updates and {len(taking_part)} "
                             "identities")
    bits = [HALF if float(np.linalg.norm(np.asarray(vector, np.float64))) <= clip_norm else -HALF
            for vector, takes in zip(vectors, taking_part, strict=True) if takes]
    expected = sampling * len(vectors)
    noised = math.fsum(bits) / expected + float(mechanism.gaussian(1, noise_multiplier / expected)[0])
    return round(min(HALF, max(-HALF, noised)), DIGITS)


def next_clip_norm(clip_norm: float, bits: Sequence[float], *, quantile: float, step: float,
                   bounds: tuple[float, float]) -> float:
    """C of the next round, from the means of bits that K sites released. Sites count alike: a site says itself how many
    people it has. So one of them moves log C by step / K at most, and nothing moves C beyond `bounds`.
    """
    if not bits:
        raise MechanismError("C needs the bit of at least one site")
    within = HALF + math.fsum(bits) / len(bits)
    low, high = bounds
    return float(min(high, max(low, clip_norm * math.exp(-step * (within - quantile)))))
