"""One site's filters in a FLARE context on a workspace of its own, as the shipped job chains them."""

from dataclasses import dataclass

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.workspace import Workspace

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.filters import (
    DecryptAdapter,
    EgressFilter,
    EncryptUpdate,
    PrivacyFilter,
    ReserveRelease,
    raw_reply,
)
from privfedtalk_flare.flare.keys import client_context
from privfedtalk_flare.settings import EncryptionSettings

SIZE = 2500
HEADER = {p.JOB: "job-1", p.ROUND: 1, p.NONCE: "ab12", p.SPEC: "0" * 64, p.BACKBONE: "1" * 64, p.KEY_ID: ""}


@dataclass(frozen=True)
class Update:
    """What the executor hands over: `training.site.IdentityUpdate` has these fields."""

    vector: np.ndarray
    score: float
    count: int


class Site:
    """One simulated site: a FLARE context on a workspace of its own, and the filters of the shipped job."""

    def __init__(self, root, task=p.TASK_ADAPTER, yaml="", name="site-1", size=SIZE, **settings):
        self.size = size
        (root / name / "local").mkdir(parents=True, exist_ok=True)
        (root / name / "startup").mkdir(exist_ok=True)
        self.state = root / "state" / name
        (root / name / "local" / "privfedtalk.yaml").write_text(f"state: {self.state}\n{yaml}")
        self.scalars = []
        manager = FLContextManager(engine=self, identity_name=name, job_id="job-1", private_stickers={
            FLContextKey.SIMULATE_MODE: True, FLContextKey.WORKSPACE_OBJECT: Workspace(str(root / name), name)})
        self.ctx = manager.new_context()
        self.ctx.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
        privacy, reliability = settings.get("privacy", {}), settings.get("reliability", {})
        encryption = settings.get("encryption", {})
        encrypted = encryption.get("scheme") != "off"
        self.data = [DecryptAdapter(encryption)] * encrypted + [ReserveRelease(privacy, reliability,
                                                                                  settings.get("rounds"))]
        self.result = [PrivacyFilter(privacy, reliability)] + [EncryptUpdate(encryption)] * encrypted
        self.egress = EgressFilter(encryption)

    def fire_event(self, event_type, fl_ctx):
        """As FLARE's engine: what would leave as an analytics event."""
        dxo = from_shareable(fl_ctx.get_prop(FLContextKey.EVENT_DATA))
        self.scalars.append((dxo.data["track_key"], dxo.data["track_value"]))

    def receive(self, data=None, **meta):
        task = DXO(DataKind.WEIGHTS, data=data or {}, meta={**HEADER, p.ZERO: not data, **meta}).to_shareable()
        for one in self.data:
            task = one.process(task, self.ctx)
        return from_shareable(task)

    def send(self, updates, header=HEADER):
        reply = raw_reply(updates, {**header, p.VALUES: self.size, p.BUSY: [[1, 2]]})
        for one in [*self.result, self.egress]:
            reply = one.process(reply, self.ctx)
        return from_shareable(reply)

    def leave(self, dxo):
        return from_shareable(self.egress.process(dxo.to_shareable(), self.ctx))

    def key(self):
        return client_context(self.ctx, EncryptionSettings())


def person(seed=0, scale=1.0, score=0.75, count=4, size=SIZE):
    return Update(np.random.default_rng(seed).normal(size=size).astype(np.float32) * scale, score, count)
