"""How much of a step of the shared adapter is signal, and how little of that an estimate can tell."""

from __future__ import annotations

import math


def snr_of_step(step_norm: float, noise_std: float, size: int, reach: float = math.inf) -> float:
    """Estimated |signal| / |noise| of a decrypted step of `size` (D) values.

    `noise_std` is the known standard deviation of the step's noise on a coordinate, eta sqrt(V) with
    V = sum_k w_k^2 (sigma C / m_k)^2; the noise alone has norm about sqrt(D) s, and what exceeds it is signal:
    sqrt(max(0, |step|^2 - D s^2)) / (sqrt(D) s), at most `reach` / (sqrt(D) s), where `reach`, eta C, is how far
    clipped updates move it. The square of the estimate is off by sqrt(2 / D), one standard deviation, by chance alone
    (`known_snr`). Without noise: infinity.
    """
    if size < 1 or not (math.isfinite(step_norm) and step_norm >= 0 and math.isfinite(noise_std) and noise_std >= 0):
        raise ValueError("needs a finite step norm and noise of at least 0 and a size of at least 1, got "
                         f"{step_norm!r}, {noise_std!r} and {size!r}")
    noise = math.sqrt(size) * noise_std
    if noise == 0:
        return math.inf
    return min(math.sqrt(max(0.0, step_norm ** 2 - noise ** 2)), reach) / noise


def snr_bound(identities: float, noise_multiplier: float, sites: int, size: int) -> float:
    """The most that K sites with `identities` people in all can reach: identities / (sigma sqrt(K D)). Under Poisson
    sampling `identities` is the number expected in a round, q N (`planner` derives it)."""
    return identities / (noise_multiplier * math.sqrt(sites * size))


def known_snr(estimate: float | None, bound: float, size: int) -> tuple[float, bool]:
    """(SNR, whether it is only the most that it can be): the `estimate` of a step of `size` values where its square is
    two standard deviations of chance or more (`snr_of_step`): from .10 on for 90,112 values, .14 for 22,528. Below
    that, what is known is a bound, those two deviations above it or `bound`; without an estimate, `bound`.

    >>> known_snr(0.3, 0.5, 90_112), known_snr(0.009, 0.0094, 90_112)
    ((0.3, False), (0.0094, True))
    """
    if estimate is None:
        return bound, True
    chance = 2 * math.sqrt(2 / size)
    if estimate ** 2 >= chance:
        return estimate, False
    return min(bound, math.sqrt(estimate ** 2 + chance)), True
