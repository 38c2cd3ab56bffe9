"""What a study needs beside the method, to know what the method is worth. For studies alone: no job ships with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from privfedtalk_flare.flare.aggregator import ISFAAggregator

CLIP_NORM, NOISE_MULTIPLIER = 4.0, 0.04
"""Of `NoisyUpdates`: C is about the norm of an update of 15 steps; the noise of a site is 12 times as long at rank 8, B
alone."""


class Control(ISFAAggregator):
    """What a study may name as a variant's `aggregator`. `seed`: the study's, of whatever the control draws; the other
    arguments are ISFA's."""

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rng = np.random.default_rng(seed)


class NoisyUpdates(Control):
    """Clips and noises each site's update as its own privacy filter would, of one person a site. Only to compare what
    noise does to B alone and to A and B, which no job may noise: their product is not linear in the noise. It promises
    nothing: updates have left their sites in clear."""

    def _payload(self, params: Mapping[str, Any] | None, said: object) -> tuple[list[bytes], int]:
        (update,), size = super()._payload(params, said)
        values = np.frombuffer(update, np.float32).astype(np.float64)
        values *= min(1.0, CLIP_NORM / max(float(np.linalg.norm(values)), 1e-12))
        values += self._rng.normal(0.0, NOISE_MULTIPLIER * CLIP_NORM, size)
        return [values.astype(np.float32).tobytes()], size


class ShuffledScores(Control):
    """Each round, the scores are dealt out anew, every site as likely to get one as any other. If the method's scores
    matter, it must do better than this. (Where sites have as many clips as each other, the weights are the same, at
    other sites; a site may get its own back, else bad ones would weigh more than by chance.)"""

    def _weights(self, replies: Mapping[str, Any]) -> dict[str, float]:
        sites = sorted(replies)
        dealt = self._rng.permutation([replies[site].score for site in sites])
        return super()._weights({site: replace(replies[site], score=score)
                                 for site, score in zip(sites, dealt.tolist(), strict=True)})
