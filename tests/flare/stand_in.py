"""A study's own executor for tests: numpy instead of a generator, and sites that misbehave. Travels as custom code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from privfedtalk_flare.federation.update import UpdateSpec
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor
from privfedtalk_flare.flare.site import place_of


@dataclass(frozen=True)
class Update:
    vector: np.ndarray
    score: float
    count: int


class Work:
    """One tensor of 4 x 8 values; site-2 runs out of memory in round 1."""

    adapters = ("identities/0123456789ab/adapter.safetensors",)
    backbone_digest = "b" * 64

    def __init__(self, site: str) -> None:
        self.site = site
        self.spec = UpdateSpec.of({"up": np.zeros((4, 8), np.float32)}, rank=4, scaling=1.0, frozen_digest="a" * 64)

    def prepare(self) -> int:
        return 2

    def adapter_round(self, theta: np.ndarray, round: int) -> list[Update]:
        if self.site == "site-2" and round == 1:
            raise MemoryError("/secret/alice/clip.mp4 does not fit")
        return [Update(np.full(32, 0.01, np.float32), 0.5, 3) for _ in range(2)]

    def personalize(self, theta: np.ndarray) -> dict[str, float]:
        return {"loss": float(np.abs(theta).mean())}

    def save_shared_adapter(self, theta: np.ndarray, folder: Any) -> None:
        pass


class StandInExecutor(PrivFedTalkExecutor):
    """The real executor on stand-in work; site-3 answers with the nonce of another round."""

    def _open(self, fl_ctx: FLContext) -> None:
        self._place = place_of(fl_ctx)
        self._work = self._work or Work(self._place.site)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        if self._place.site == "site-3" and task_name == p.TASK_PERSONALIZE:
            dxo = from_shareable(reply)
            dxo.meta[p.NONCE] = "0" * 32
            return dxo.update_shareable(reply)
        return reply
