"""What a site publishes of its people's updates in one adapter round: planned before training, made after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from privfedtalk_flare.federation.isfa import sealed_weights
from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.adaptive import release_bit
from privfedtalk_flare.privacy.mechanism import MechanismError
from privfedtalk_flare.settings import CLAIMS, PrivacySettings, ReliabilitySettings


class Update(Protocol):
    """One identity's raw update: `vector` (D,) float32, `score` in [0, 1], `count` training clips. PRIVATE."""

    vector: np.ndarray
    score: float
    count: int


@dataclass(frozen=True)
class Outgoing:
    """What leaves: `update` (D,) float32 of m `identities`; score, count and clip bit where the job has them travel."""

    update: np.ndarray
    identities: int
    score: float | None = None
    count: int | None = None
    clip_bit: float | None = None


@dataclass(frozen=True)
class _People:
    """A site's m people after what failed or was not sampled has become zeros; `taking_part` says who is left."""

    vectors: list[np.ndarray]
    scores: list[float]
    counts: list[int]
    taking_part: list[bool]


def planned_release(privacy: PrivacySettings, reliability: ReliabilitySettings) -> Release:
    """What an adapter round of these settings publishes about each identity: what the ledger books."""
    score = {"metadata": reliability.release, "counts": "counts", "sealed": "sealed",
             "uniform": "none"}[reliability.mode]
    if privacy.mechanism != "gaussian":
        return Release(None, score)
    return Release(privacy.noise_multiplier, score,
                   score_noise_multiplier=privacy.score_noise_multiplier if score == "noised" else None,
                   sampling=privacy.sampling, honest=privacy.honest_sites if privacy.shares_noise else 1,
                   clip_bit_noise_multiplier=(privacy.clip_bit_noise_multiplier if privacy.clip_quantile is not None
                                              else None))


def protect(updates: Sequence[Update], size: int, privacy: PrivacySettings, reliability: ReliabilitySettings, *,
            clip_norm: float | None, sample: mechanism.PoissonSample | None,
            warn: Callable[[str], None]) -> Outgoing:
    """Clips the m raw updates of length D = `size` at C = `clip_norm`, weighs, averages and noises them.

    Everybody counts, or those of `sample` alone, whoever was trained; with mechanism `off` it averages only. Raises
    `MechanismError` where the promise would not hold.
    """
    people, wanted = _people(updates, size, sample, warn), planned_release(privacy, reliability)
    bit = score = count = None
    if wanted.clip_bit_noise_multiplier is not None:
        bit = release_bit(people.vectors, people.taking_part, clip_norm,
                          noise_multiplier=wanted.clip_bit_noise_multiplier, sampling=wanted.sampling)
    if reliability.mode in CLAIMS:
        count = max(1, min(sum(people.counts), reliability.max_clips))
    if reliability.mode == "metadata":
        score = mechanism.release_score(people.scores, release=wanted.score,
                                        noise_multiplier=wanted.score_noise_multiplier)
    return Outgoing(_average(people, privacy, reliability, clip_norm), len(updates), score, count, bit)


def _people(updates: Sequence[Update], size: int, sample: mechanism.PoissonSample | None,
            warn: Callable[[str], None]) -> _People:
    """Who was not sampled, or whose update is not finite, counts with zeros and score 0."""
    if not updates:
        raise MechanismError("there is no update to release")
    taking_part = [True] * len(updates) if sample is None else [bool(taken) for taken in sample.of(len(updates))]
    vectors, scores = [], []
    for place, update in enumerate(updates):
        vector, score = np.asarray(update.vector), float(update.score)
        if vector.shape != (size,):
            raise MechanismError(f"identity {place + 1}: update of shape {vector.shape}, not ({size},)")
        if not np.isfinite(vector).all() or not 0 <= score <= 1:
            warn(f"identity {place + 1} of {len(updates)}: update not finite or score not in [0, 1], so its training "
                 "failed; it counts with zeros")
            taking_part[place] = False
        vectors.append(vector if taking_part[place] else np.zeros(size, np.float32))
        scores.append(score if taking_part[place] else 0.0)
    return _People(vectors, scores, [int(update.count) for update in updates], taking_part)


def _average(people: _People, privacy: PrivacySettings, reliability: ReliabilitySettings,
             clip_norm: float | None) -> np.ndarray:
    vectors, scores, counts = people.vectors, people.scores, people.counts
    if privacy.shares_noise:
        if len(vectors) > privacy.people:
            raise MechanismError(f"this site has {len(vectors)} people, and the job's privacy.people, by which every "
                                 f"site divides, is {privacy.people}")
        absent = privacy.people - len(vectors)  # as if they had sent zeros
        vectors = vectors + [np.zeros_like(vectors[0])] * absent
        scores, counts = scores + [0.0] * absent, counts + [0] * absent
    m = len(vectors)
    weights = np.full(m, 1.0 / m)
    if reliability.mode == "sealed":
        weights = sealed_weights(scores, counts, gamma=reliability.gamma, max_clips=reliability.max_clips)
    if privacy.mechanism == "off":
        return mechanism.average(vectors, weights, identities=m).astype(np.float32)
    return mechanism.release(vectors, weights, noise_multiplier=privacy.own_noise_multiplier, clip_norm=clip_norm,
                             identities=m, sampling=privacy.sampling)
