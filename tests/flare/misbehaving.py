"""Sites that misbehave, around the real executor and its real work. Travels to them as a study's custom code."""

from __future__ import annotations

from typing import Any

from nvflare.apis.dxo import DXO, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor


class Unreliable(PrivFedTalkExecutor):
    """site-2 runs out of memory in round 1; site-3 answers `personalize` with the nonce of another round."""

    def _train_adapter(self, dxo: DXO, header: dict[str, Any], fl_ctx: FLContext) -> Shareable:
        if fl_ctx.get_identity_name() == "site-2" and header[p.ROUND] == 1:
            raise MemoryError("/secret/alice/clip.mp4 does not fit")
        return super()._train_adapter(dxo, header, fl_ctx)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        reply = super().execute(task_name, shareable, fl_ctx, abort_signal)
        if fl_ctx.get_identity_name() == "site-3" and task_name == p.TASK_PERSONALIZE:
            dxo = from_shareable(reply)
            dxo.meta[p.NONCE] = "0" * 32
            return dxo.update_shareable(reply)
        return reply


class Loud(Filter):
    """After the privacy filter: site-2 sends 20 times what it may."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        dxo = from_shareable(shareable)
        if fl_ctx.get_identity_name() == "site-2" and p.PLAIN in dxo.data:
            dxo.data[p.PLAIN] = dxo.data[p.PLAIN] * 20
        return dxo.update_shareable(shareable)
