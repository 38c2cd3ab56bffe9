"""What the numbers of a private run mean, in words and as a signal-to-noise ratio."""

from __future__ import annotations

import math

HANDFUL = 100
"""Below this many identities in a federation, differential privacy at a serious epsilon drowns the update."""

DROWNED = 0.05
"""SNR of a round below which nothing was seen to be learnt: in study privacy half the gain was left at .1 and none at
.04, of an adapter of rank 2."""

LEARNT = 0.3
"""Most that a round's SNR could be (`snr_bound`) from which on adapters of rank 2 were seen to gain, by steps of eta 24
at C 1 (studies privacy and scale)."""


def snr_of_step(step_norm: float, noise_std: float, size: int, reach: float = math.inf) -> float:
    """Estimated |signal| / |noise| of a decrypted step of `size` (D) values.

    `noise_std` is the known standard deviation of the step's noise on a coordinate, eta sqrt(V) with
    V = sum_k w_k^2 (sigma C / m_k)^2; the noise alone has norm about sqrt(D) s, and what exceeds it is signal:
    sqrt(max(0, |step|^2 - D s^2)) / (sqrt(D) s), at most `reach` / (sqrt(D) s), where `reach`, eta C, is how far
    clipped updates move it: chance alone makes the estimate D^(-1/4), .06 for 90,112 values. Without noise: infinity.
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
    """(SNR, whether it is only the most that it can be): the `estimate` of a step of `size` values where it says
    something, which it does from D^(-1/4) on (`snr_of_step`); below that, or without one, what is known is a bound.
    """
    if estimate is None:
        return bound, True
    resolution = size ** -0.25
    return (estimate, False) if estimate >= resolution else (min(bound, resolution), True)


def handful_words(identities: int, snr: float, epsilon: float, *, most: bool = False) -> str:
    """One sentence for people: what `identities` people at this `epsilon` make of the shared adapter at this `snr`,
    or, with `most`, where it is no larger than this."""
    people = "1 person" if identities == 1 else f"{identities} people"
    if math.isinf(epsilon):
        return f"No epsilon is promised to the {people} of this run: their updates carry too little noise or none."
    promise = f"epsilon {epsilon:.2f} for {people}"
    if epsilon > 20:
        promise += " (so large that it promises little)"
    if snr >= 1:
        return (f"{promise}: the signal is {'at most ' if most else ''}{snr:.2g} times the noise, so the shared "
                f"adapter {'can learn' if most else 'learns'} from them.")
    text = (f"{promise}: the noise is {'at least ' if most else ''}{_times(snr)} the signal, so the shared adapter "
            f"learns {'next to nothing' if snr < DROWNED else 'little'} from them.")
    if identities < HANDFUL:
        text += " With a handful of people this shows the machinery; it takes hundreds to learn something under it."
    return text


def _times(snr: float) -> str:
    if snr < 1e-3:
        return "more than 1,000 times"
    return f"{1 / snr:.0f} times" if snr < 0.1 else f"{1 / snr:.1f} times"
