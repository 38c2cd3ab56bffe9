"""What a study needs beside the method, to know what the method is worth. For studies alone: no job ships with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator

CLIP_NORM, NOISE_MULTIPLIER = 4.0, 0.04
"""Of `NoisyUpdates`: C is about the norm of an update of 15 steps; the noise of a site is 12 times as long at rank 8, B
alone."""


class NoisyUpdates(ISFAAggregator):
    """Clips and noises each site's update as its own privacy filter would, of one person a site. Only to compare what
    noise does to B alone and to A and B, which no job may noise: their product is not linear in the noise. It promises
    nothing: updates have left their sites in clear."""

    def _payload(self, params: Mapping[str, Any] | None, said: object) -> tuple[list[bytes], int]:
        (update,), size = super()._payload(params, said)
        values = np.frombuffer(update, np.float32).astype(np.float64)
        values *= min(1.0, CLIP_NORM / max(float(np.linalg.norm(values)), 1e-12))
        values += np.random.default_rng().normal(0.0, NOISE_MULTIPLIER * CLIP_NORM, size)
        return [values.astype(np.float32).tobytes()], size


class ShuffledScores(ISFAAggregator):
    """The same weights at the wrong sites: each round, scores move on among the sites, by a number of places drawn from
    the round's number, never by none. If the method's scores matter, it must do better than this."""

    def _weights(self, replies: Mapping[str, Any]) -> dict[str, float]:
        if len(replies) < 2:
            return super()._weights(replies)
        by = 1 + int(np.random.default_rng(int(self._header.get(p.ROUND, 0))).integers(len(replies) - 1))
        sites, scores = list(replies), [reply.score for reply in replies.values()]
        moved = scores[-by:] + scores[:-by]
        return super()._weights({site: replace(replies[site], score=score)
                                 for site, score in zip(sites, moved, strict=True)})
