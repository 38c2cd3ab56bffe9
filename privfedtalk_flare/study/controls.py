"""What a study needs beside the method, to know what the method is worth. For studies alone: no job ships with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator


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
