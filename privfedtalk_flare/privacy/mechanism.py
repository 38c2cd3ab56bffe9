"""The Gaussian mechanism on a site's identities: clip each, average, add noise that nobody can reproduce.

The unit is one identity, adjacency is zero-out (one identity's contribution replaced by zero, m public): with weights
v_i <= 1/m the sum's L2 sensitivity is C/m, and noise of standard deviation sigma C/m a coordinate makes one release a
Gaussian mechanism with noise multiplier sigma. Under Poisson sampling at rate q all three are divided by q, so that the
sum means the same: v_i <= 1/(q m), sensitivity C/(q m), noise sigma C/(q m).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from privfedtalk_flare.federation.isfa import coarse

DRAWS = 4
"""Independent normal draws added for each value, as in Opacus' secure mode: floating-point attacks on the low bits of
the noise (arXiv 2107.10138, 2112.05307) then need 2^159 steps instead of 2^53."""

_CHUNK = 1 << 16
_TRIM = 1.0 - 1e-12  # keeps the clipped norm at or below C after rounding


class MechanismError(ValueError):
    """An input on which the privacy promise would not hold. The message names it."""


def clip(vector: np.ndarray, bound: float) -> np.ndarray:
    """(D,) float64: `vector`, scaled down to L2 norm C = `bound` where it is longer. Refuses non-finite values."""
    _positive(bound, "clip norm C")
    values = np.asarray(vector, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise MechanismError(f"an update of shape {values.shape} cannot be clipped: it must be flat and finite")
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0:
        return values
    unit = values / largest  # so that no square overflows
    norm = float(np.linalg.norm(unit))
    return values if norm * largest <= bound else unit * (bound / norm * _TRIM)


def gaussian(size: int, std: float) -> np.ndarray:
    """(size,) float64 from N(0, std^2), from the operating system's entropy. There is no seed, on purpose."""
    _positive(std, "standard deviation")
    out = np.empty(size, np.float64)
    for start in range(0, size, _CHUNK):
        n = min(_CHUNK, size - start)
        out[start:start + n] = sum(_normal(n) for _ in range(DRAWS))
    return out * (std / math.sqrt(DRAWS))


class PoissonSample:
    """Who takes part in one release: each identity with probability q = `rate`, from the operating system's entropy.

    Drawn once, when it is first asked for, and the same from then on: one release is about one sample, however often it
    is asked. It is secret: whoever learns it has the account of full participation.
    """

    def __init__(self, rate: float) -> None:
        if not 0 < rate <= 1:
            raise MechanismError(f"sampling rate q must lie above 0 and at most at 1, got {rate!r}")
        self._rate = rate
        self._drawn: np.ndarray | None = None

    def of(self, identities: int) -> np.ndarray:
        """(m,) bool for a site's m = `identities`; another m than the first time is refused."""
        if self._drawn is None:
            self._drawn = _uniform(identities) < self._rate
        if self._drawn.shape != (identities,):
            raise MechanismError(f"a sample of {self._drawn.size} identities was drawn, and is now asked about "
                                 f"{identities}")
        return self._drawn.copy()

    def __repr__(self) -> str:
        return f"PoissonSample({self._rate:g})"  # and never who


def release(vectors: Sequence[np.ndarray], weights: Sequence[float], *, noise_multiplier: float, clip_norm: float,
            identities: int, sampling: float = 1.0) -> np.ndarray:
    """(D,) float32: sum_i v_i clip(delta_i, C) / q + N(0, (sigma C / (q m))^2) on every coordinate.

    `vectors` are the m raw updates of a site's identities, zeros for those who were not sampled, `weights` the v_i,
    each in [0, 1/m]; anything else would raise the sensitivity above C/(q m) and is refused. `sampling` is q.
    """
    total = average([clip(vector, clip_norm) for vector in vectors], weights, identities=identities) / sampling
    std = noise_std(noise_multiplier, clip_norm / sampling, identities)
    return (total + gaussian(total.size, std)).astype(np.float32)


def average(vectors: Sequence[np.ndarray], weights: Sequence[float], *, identities: int) -> np.ndarray:
    """(D,) float64: sum_i v_i delta_i of exactly m vectors of one length, v_i in [0, 1/m]. Not private by itself."""
    v = np.asarray(weights, np.float64)
    if identities < 1 or len(vectors) != identities or v.shape != (identities,):
        raise MechanismError(f"a release is about exactly m = {identities} identities, got {len(vectors)} updates and "
                             f"{v.size} weights; a person whose training failed counts with an update of zeros")
    if not (np.isfinite(v).all() and (v >= 0).all() and (v <= 1 / identities * (1 + 1e-12)).all()):
        raise MechanismError(f"weights {v.tolist()} must lie in [0, 1/m = {1 / identities:.4g}]")
    if len({np.shape(vector) for vector in vectors}) != 1:
        raise MechanismError(f"updates differ in shape: {[np.shape(vector) for vector in vectors]}")
    total = np.zeros(np.shape(vectors[0]), np.float64)
    for weight, vector in zip(v, vectors, strict=True):
        total += weight * np.asarray(vector, np.float64)
    if not np.isfinite(total).all():
        raise MechanismError("an update holds values that are not finite")
    return total


def noise_std(noise_multiplier: float, clip_norm: float, identities: int) -> float:
    """sigma C / m: the noise's standard deviation on every coordinate of a site's release."""
    _positive(noise_multiplier, "noise multiplier sigma")
    _positive(clip_norm, "clip norm C")
    return noise_multiplier * clip_norm / identities


def release_score(scores: Sequence[float], *, release: str, noise_multiplier: float | None = None) -> float:
    """The site's score s~ on the grid of 1/16 in [0, 1], from the scores of its m identities.

    `coarse`: the mean, rounded; public metadata, outside the (epsilon, delta) promise. `noised`: N(0, (sigma_s / m)^2)
    is added to the mean first, then clipped, then rounded (rounding first would add 1/16 to the sensitivity 1/m).
    """
    values = np.asarray(scores, np.float64)
    in_range = np.isfinite(values) & (values >= 0) & (values <= 1)
    if values.ndim != 1 or not values.size or not in_range.all():
        raise MechanismError("scores must be one or more finite numbers in [0, 1]")
    mean = float(values.mean())
    if release == "noised":
        _positive(noise_multiplier, "score noise multiplier sigma_s")
        mean += float(gaussian(1, noise_multiplier / values.size)[0])
    elif release != "coarse":
        raise MechanismError(f"score release {release!r} is unknown; the choices are coarse, noised")
    return coarse(min(1.0, max(0.0, mean)))


def _normal(size: int) -> np.ndarray:
    """(size,) standard normal float64 by Box and Muller, from 53-bit uniforms of os.urandom."""
    pairs = (size + 1) // 2
    uniform = _uniform(2 * pairs).reshape(2, pairs)
    radius = np.sqrt(-2.0 * np.log1p(-uniform[0]))  # 1 - u lies in (0, 1]
    angle = 2.0 * math.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


def _uniform(size: int) -> np.ndarray:
    """(size,) float64 in [0, 1), 53 bits each of os.urandom."""
    bits = np.frombuffer(os.urandom(8 * size), np.uint64) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0 ** -53


def _positive(value: float | None, name: str) -> None:
    if value is None or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise MechanismError(f"{name} must be a finite number above 0, got {value!r}")
