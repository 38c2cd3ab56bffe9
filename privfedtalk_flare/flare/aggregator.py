"""Identity-Stable Federated Aggregation in FLARE's `ModelAggregator` form, on ciphertexts or plain vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nvflare.apis.fl_component import FLComponent
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator

from privfedtalk_flare.encryption.keys import KeyFault
from privfedtalk_flare.encryption.packing import CiphertextError
from privfedtalk_flare.encryption.sums import weighted_sum
from privfedtalk_flare.federation.averaging import AveragingError
from privfedtalk_flare.federation.isfa import ScalarError, isfa_weights, share_cap, uniform
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.chunks import ChunkError, from_params, to_params
from privfedtalk_flare.flare.keys import server_context
from privfedtalk_flare.flare.received import Refused, encrypted_payload, plain_payload, scalars_of
from privfedtalk_flare.flare.scalars import MOST, clip_bit, misshapen, whole
from privfedtalk_flare.flare.site import workspace_of
from privfedtalk_flare.flare.spool import Spool
from privfedtalk_flare.settings import CLAIMS, EncryptionSettings, ReliabilitySettings, RoundSettings, parse

if TYPE_CHECKING:
    import tenseal

_SHARED = (p.SPEC, p.BACKBONE, p.KEY_ID)


@dataclass(frozen=True)
class _Reply:
    payload: Sequence[bytes]
    shared: tuple[Any, ...]
    identities: int
    score: float | None
    count: int | None
    clip_bit: float | None
    bytes_up: int


class ISFAAggregator(ModelAggregator):
    """Keeps theta as the server has it, and adds eta sum_k w_k u_k of the accepted replies to it. Accepted updates wait
    on disk: the server's memory does not grow with the number of sites, but for the replies that arrive at once.

    Args:
        reliability: `ReliabilitySettings`. encryption: `EncryptionSettings`; scheme `off` sums plain vectors.
        rounds: `RoundSettings`, of which eta, the server's step, and min_sites, the replies without which an
            aggregation raises `AveragingError`, are this component's; 1 each where left out.

    What only sites can know (spec, backbone, key id, D) is taken from the first accepted replies: from what most of
    them agree on. In FLARE's own FedAvg nobody calls `begin_round`; header checks then wait for a header to check.
    """

    def __init__(self, reliability: Mapping[str, Any] | None = None, encryption: Mapping[str, Any] | None = None,
                 rounds: Mapping[str, Any] | None = None) -> None:
        FLComponent.__init__(self)  # ModelAggregator's own __init__ forgets it, and with it the logger (nvflare 2.9)
        super().__init__()
        self.reliability, self.encryption, self.rounds = reliability, encryption, rounds
        self._reliability = parse(ReliabilitySettings, reliability, "reliability")
        self._encrypted = parse(EncryptionSettings, encryption, "encryption").scheme != "off"
        settings = parse(RoundSettings, {"eta": 1.0, "min_sites": 1} if rounds is None else rounds, "rounds")
        self.eta, self.min_sites = settings.eta, settings.min_sites
        self.theta: dict[str, np.ndarray] | None = None
        self.spec = self.backbone = self.key_id = ""
        self.values: int | None = None
        self._context: tenseal.Context | None = None
        self._header: dict[str, Any] = {}
        self._sites: frozenset[str] | None = None
        self._spool: Spool | None = None
        self.reset_stats()
        self.stats: dict[str, dict[str, Any]] = {}
        self.cap: float | None = None

    @property
    def bytes_down(self) -> int:
        """Bytes of theta as it is broadcast; 0 before the first round."""
        return sum(int(array.nbytes) for array in (self.theta or {}).values())

    def reset_stats(self) -> None:
        """Forgets the replies of the last round; theta, key id and spec stay."""
        self._forget_replies()
        self.refused: dict[str, str] = {}

    def _forget_replies(self) -> None:
        self._replies: dict[str, _Reply] = {}
        if self._spool is not None:
            self._spool.close()
        self._spool = None

    def begin_round(self, header: Mapping[str, Any], sites: Iterable[str]) -> None:
        """Expects one reply from each of `sites`, echoing `header`; "" in it stands for what only sites can know."""
        self.reset_stats()
        self._header = {key: header[key] for key in p.HEADER}
        self._sites = frozenset(sites)

    def accept_model(self, model: FLModel) -> str:
        """Checks one reply. Returns "" where it counts, else the reason, which is logged and kept in `refused`.

        The sender is `meta["client_name"]`, which FLARE's server sets; nothing in the payload names it.
        """
        meta = model.meta or {}
        site = str(meta.get("client_name", ""))
        try:
            reply = self._checked(site, model.params, meta)
        except (Refused, ScalarError, ChunkError, CiphertextError, OSError) as reason:  # OSError: a full disk
            self.refused.setdefault(site, str(reason))
            self.logger.warning(f"{site} refused: {reason}")
            return str(reason)
        self._replies[site] = reply
        return ""

    def aggregate_model(self) -> FLModel:
        """theta + eta sum_k w_k u_k, as a full model. Raises `AveragingError` where too few replies agree, theta as it
        was; the replies are forgotten either way."""
        try:
            return self._aggregated(self._agreeing())
        finally:
            self._forget_replies()

    def _aggregated(self, replies: Mapping[str, _Reply]) -> FLModel:
        weights = self._weights(replies)
        if self._encrypted:
            held = from_params(self.theta) if self.theta else None
            chunks = weighted_sum({site: r.payload for site, r in replies.items()}, weights, self._server_context(),
                                  size=self.values, theta=held, eta=self.eta)
            self.theta = to_params(chunks)
        else:
            total = np.zeros(self.values) if self.theta is None else self.theta[p.PLAIN].astype(np.float64)
            for site, reply in replies.items():
                total += self.eta * weights[site] * np.frombuffer(reply.payload[0], np.float32).astype(np.float64)
            self.theta = {p.PLAIN: total.astype(np.float32)}
        self.stats = {site: {"weight": weights[site], "score": r.score, "count": r.count, "bytes_up": r.bytes_up,
                             "identities": r.identities, p.CLIP_BIT: r.clip_bit} for site, r in replies.items()}
        return FLModel(params_type=ParamsType.FULL, params=dict(self.theta),
                       meta={p.ZERO: False, p.KEY_ID: self.key_id, p.VALUES: self.values, "weights": weights})

    def _checked(self, site: str, params: Mapping[str, Any] | None, meta: Mapping[str, Any]) -> _Reply:
        if not site or (self._sites is not None and site not in self._sites):
            raise Refused(f"{site or 'an unnamed site'} was not asked in this round")
        if site in self._replies or site in self.refused:
            raise Refused("a second reply in one round")
        if reason := misshapen(meta):
            raise Refused(reason)
        for key, value in self._header.items():
            if value != "" and meta.get(key) != value:
                raise Refused(f"header: {key} is {meta.get(key)!r}, this round's is {value!r}")
        shared = tuple(meta.get(key) or "" for key in _SHARED)
        for key, value, known in zip(_SHARED, shared, (self.spec, self.backbone, self.key_id), strict=True):
            if known and value != known:
                raise Refused(f"header: {key} is {value!r}, this run's is {known!r}")
            if not isinstance(value, str) or (self._header and not value and (key != p.KEY_ID or self._encrypted)):
                raise Refused(f"header: {key} is {value!r}; a reply must say its own")
        identities = meta.get(p.IDENTITIES, None if self._header else 1)
        if not whole(identities, 1):
            raise Refused(f"identities {identities!r} is not an integer in [1, {MOST}]")
        score, count = scalars_of(meta, self._reliability)
        chunks, size = self._payload(params, meta.get(p.VALUES))
        bit = meta.get(p.CLIP_BIT)
        if bit is not None and not clip_bit(bit):
            raise Refused(f"{p.CLIP_BIT} {str(bit)[:40]!r} is no mean of bits in [-1/2, 1/2]")
        return _Reply(self._kept(chunks), (*shared, size), identities, score, count, bit, sum(map(len, chunks)))

    def _kept(self, chunks: Sequence[bytes]) -> Sequence[bytes]:
        """The update on disk, in the job's run folder."""
        if self._spool is None:
            run = Path(workspace_of(self.fl_ctx).get_run_dir(self.fl_ctx.get_job_id())) if self.fl_ctx else None
            self._spool = Spool(run)
        return self._spool.keep(chunks)

    def _payload(self, params: Mapping[str, Any] | None, said: object) -> tuple[list[bytes], int]:
        """The update, checked, as bytes, and D: the one this run has settled on, else what the reply says or shows."""
        if said is not None and not whole(said, 1):
            raise Refused(f"{p.VALUES} {said!r} is not an integer in [1, {MOST}]")
        if not self._encrypted:
            return plain_payload(params, self.values or said)
        try:
            context = self._server_context()
        except KeyFault as fault:
            raise Refused(str(fault)) from fault
        return encrypted_payload(params, self.values or said, context)

    def _agreeing(self) -> dict[str, _Reply]:
        """The accepted replies that share spec, backbone, key and D; the majority of the first ones settles these."""
        replies = dict(self._replies)
        if self.values is None and replies:
            votes = Counter(reply.shared for reply in replies.values()).most_common()
            if len(votes) > 1 and votes[0][1] == votes[1][1]:
                raise AveragingError("sites disagree about spec, backbone, key or size, and no version has a majority: "
                                     + "; ".join(f"{site} {_short(r.shared)}" for site, r in sorted(replies.items())))
            settled = votes[0][0]
            for site in [site for site, reply in replies.items() if reply.shared != settled]:
                self.refused[site] = f"header: {_short(replies.pop(site).shared)}, most sites have {_short(settled)}"
                self.logger.warning(f"{site} refused: {self.refused[site]}")
            if len(replies) >= self.min_sites:
                self.spec, self.backbone, self.key_id, self.values = settled
        if len(replies) < max(1, self.min_sites):
            raise AveragingError(f"{len(replies)} good replies, min_sites is {self.min_sites}; refused: {self.refused}")
        return dict(sorted(replies.items()))

    def _weights(self, replies: Mapping[str, _Reply]) -> dict[str, float]:
        """w_k of this round, sum 1. In `sealed` the sites have weighed already: the public constant c = 1/K; in
        `counts` no score travels, and all weigh as if they had the same."""
        settings = self._reliability
        self.cap = share_cap(len(replies), settings.max_share) if settings.mode in CLAIMS else None
        if settings.mode not in CLAIMS:
            return uniform(replies)
        return isfa_weights({site: r.score or 0.0 for site, r in replies.items()},
                            {site: r.count for site, r in replies.items()}, gamma=settings.gamma,
                            max_clips=settings.max_clips, max_share=settings.max_share)

    def _server_context(self) -> tenseal.Context:
        if self._context is None:
            if self.fl_ctx is None:
                raise KeyFault("the aggregator has seen no START_RUN and cannot find the server's context; make it a "
                               "component of the server's configuration")
            self._context = server_context(self.fl_ctx)
        return self._context


def _short(shared: tuple[Any, ...]) -> str:
    return ", ".join(f"{key} {str(value)[:12]}" for key, value in zip((*_SHARED, p.VALUES), shared, strict=True))
