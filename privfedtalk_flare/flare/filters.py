"""A site's filters on an adapter round, in this order, each failing closed.

In: `DecryptAdapter` opens the shared adapter, `ReserveRelease` books the release in the ledger before anything trains.
Out: `PrivacyFilter` clips, averages and adds noise, `EncryptUpdate` encrypts, `EgressFilter` (egress.py) lets through
what may leave. What a filter does not know it refuses: with a status word for the executor to answer with (in), or by
blocking the result, which FLARE answers with an error code and no content (out); the job goes on either way, and the
reason stays in the site's own log (guard.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from privfedtalk_flare.checks import check_shares
from privfedtalk_flare.encryption.keys import check_key_id, key_id
from privfedtalk_flare.encryption.packing import decrypt, encrypt, held_values
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.books import book, budgets, echo_of, open_ledger
from privfedtalk_flare.flare.chunks import ChunkError, from_params, to_params
from privfedtalk_flare.flare.egress import EgressFilter
from privfedtalk_flare.flare.failures import BackboneRefused, HeaderError, PlainTaskError
from privfedtalk_flare.flare.guard import ResultFilter, TaskFilter
from privfedtalk_flare.flare.keys import client_context
from privfedtalk_flare.flare.replies import RAW_KIND, RawUpdates, raw_reply, status_reply
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.flare.steps import CHECKED, check, check_header, clip_norm_of, refuse_if_stopped
from privfedtalk_flare.privacy.accountant import Release, View
from privfedtalk_flare.privacy.ledger import Entry, Head
from privfedtalk_flare.privacy.mechanism import MechanismError, PoissonSample
from privfedtalk_flare.privacy.outgoing import planned_release, protect
from privfedtalk_flare.settings import (
    EncryptionSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    parse,
)

__all__ = ["DecryptAdapter", "EgressFilter", "EncryptUpdate", "PrivacyFilter", "ReserveRelease", "raw_reply",
           "status_reply"]

_RESERVATION = "privfedtalk_reservation"
_ENCRYPTED = "privfedtalk_encrypted"


class DecryptAdapter(TaskFilter):
    """Task data: ciphertext chunks -> {"plain": theta (D,) float32}. Round 0 says theta = 0 and carries nothing."""

    def __init__(self, encryption: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.encryption = encryption
        self._encryption = parse(EncryptionSettings, encryption, "encryption")

    def incoming(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        refuse_if_stopped(place_of(fl_ctx).state)
        dxo = from_shareable(shareable)
        context = client_context(fl_ctx, self._encryption)
        if dxo.meta.get(p.ZERO):
            if dxo.data:
                raise ChunkError(f"the task says theta is zero but carries {sorted(dxo.data)[:3]}")
            if dxo.meta.get(p.KEY_ID):
                check_key_id(dxo.meta[p.KEY_ID], key_id(context), "task")
        else:
            check_key_id(dxo.meta.get(p.KEY_ID), key_id(context), "task")
            chunks = from_params(dxo.data)
            dxo.data = {p.PLAIN: decrypt(chunks, held_values(chunks, context), context)}
        fl_ctx.set_prop(_ENCRYPTED, True, private=True, sticky=False)
        return dxo.update_shareable(shareable)


class ReserveRelease(TaskFilter):
    """Task data: checks what can be known before anything trains, and books the coming release in the site's ledger.

    On task `backbone` it books a release without noise, as plain weights leave the site there. A task that the site
    refuses costs it nothing. A ledger that is missing, altered, or behind its anchor or the server's echo, and a budget
    that the release would pass, each decline the task with a status.
    """

    def __init__(self, privacy: Mapping[str, Any] | None = None, reliability: Mapping[str, Any] | None = None,
                 rounds: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.privacy, self.reliability, self.rounds = privacy, reliability, rounds
        self._privacy = parse(PrivacySettings, privacy, "privacy")
        self._reliability = parse(ReliabilitySettings, reliability, "reliability")
        self._rounds = parse(RoundSettings, rounds, "rounds")
        check_shares(self._privacy, self._rounds)

    def incoming(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        dxo = from_shareable(shareable)
        meta = dxo.meta
        if meta.get(p.STATUS, p.STATUS_OK) != p.STATUS_OK:
            return shareable
        phase = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        place = place_of(fl_ctx)
        refuse_if_stopped(place.state)
        if phase == p.TASK_ADAPTER and self._privacy.shares_noise:
            if not fl_ctx.get_prop(_ENCRYPTED, False):
                raise PlainTaskError("this job sends updates unencrypted, with a share of the noise each, which is too "
                                     "little for one alone")
            if p.AGREED not in meta:
                raise HeaderError(f"header {p.AGREED}: missing; where sites share the noise, they must know that all "
                                  "have the same settings")
        if phase == p.TASK_ADAPTER and place.require_encryption and not fl_ctx.get_prop(_ENCRYPTED, False):
            raise PlainTaskError("this job sends updates unencrypted, and this site's privfedtalk.yaml requires "
                                 "encryption")
        if phase == p.TASK_BACKBONE and not place.allow_backbone:
            raise BackboneRefused("this job trains the backbone, whose weights travel unencrypted and without a "
                                  "privacy guarantee, and this site's privfedtalk.yaml says allow_backbone: false")
        check_header(meta, fl_ctx.get_job_id(), privacy=self._privacy, reliability=self._reliability,
                     rounds=self._rounds)
        if phase == p.TASK_ADAPTER and p.MOVED in meta:  # FLARE's own FedAvg says none; our executor then insists
            theta = None if meta.get(p.ZERO) else np.asarray(dxo.data[p.PLAIN], np.float32)
            check(theta, meta, place, self._privacy, self._rounds)
            fl_ctx.set_prop(CHECKED, True, private=True, sticky=False)
        noisy = phase == p.TASK_ADAPTER and self._privacy.mechanism == "gaussian"
        entry = Entry(job=str(meta.get(p.JOB)), phase=str(phase), round=int(meta.get(p.ROUND) or 0),
                      nonce=str(meta.get(p.NONCE)), release=_release(self._privacy, self._reliability, phase),
                      clip_norm=clip_norm_of(meta, self._privacy) if noisy else None, delta=self._privacy.delta,
                      trust=self._privacy.noise if noisy else "none")
        echo = echo_of(meta, fl_ctx.get_identity_name())
        ledger = open_ledger(place, fl_ctx)
        views = ledger.reserve(entry, *budgets(place, self._privacy), echo=echo)
        # A task that is asked again is booked anew and draws anew.
        sample = PoissonSample(self._privacy.sampling) if noisy and self._privacy.sampling < 1 else None
        fl_ctx.set_prop(_RESERVATION, _Reservation(entry, views, ledger.head, sample), private=True, sticky=False)
        book(fl_ctx, meta, entry.release)
        return shareable


class PrivacyFilter(ResultFilter):
    """Result of an adapter task: raw updates -> {"plain": u (D,) float32}, clipped, averaged and noised.

    Refuses a result for which `ReserveRelease` has booked no release in this very task. With mechanism `off` it
    averages only. Adds identities, epsilon and ledger head to the reply; the count in modes `metadata` and `counts`,
    the score in `metadata` only.
    """

    def __init__(self, privacy: Mapping[str, Any] | None = None, reliability: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.privacy, self.reliability = privacy, reliability
        self._privacy = parse(PrivacySettings, privacy, "privacy")
        self._reliability = parse(ReliabilitySettings, reliability, "reliability")

    def outgoing(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        dxo = from_shareable(shareable)
        raw = dxo.data.get("updates") if dxo.data_kind == RAW_KIND else None
        if not isinstance(raw, RawUpdates):
            raise ContentBlockedException(f"the privacy filter knows {RAW_KIND} only, got {dxo.data_kind!r}")
        reservation = fl_ctx.get_prop(_RESERVATION)
        fl_ctx.set_prop(_RESERVATION, None, private=True, sticky=False)
        wanted = _release(self._privacy, self._reliability, p.TASK_ADAPTER)
        if not isinstance(reservation, _Reservation) or not reservation.covers(dxo.meta, wanted):
            raise ContentBlockedException("no release is booked in the ledger for this task; the job's task data "
                                          "filters of `adapter` must end with ReserveRelease, with the same settings")
        try:
            out = protect(raw.take(), dxo.meta.get(p.VALUES), self._privacy, self._reliability,
                          clip_norm=reservation.entry.clip_norm, sample=reservation.sample, warn=self.logger.warning)
        except MechanismError as error:
            raise ContentBlockedException(str(error)) from error
        meta = {**dxo.meta, p.IDENTITIES: out.identities, p.LEDGER: asdict(reservation.head),
                p.EPSILON: {name: view.value for name, view in reservation.views.items()}}
        told = {p.SCORE: out.score, p.COUNT: out.count, p.CLIP_BIT: out.clip_bit}
        meta |= {key: value for key, value in told.items() if value is not None}
        if self._privacy.mechanism == "off" and out.score is not None:
            tracking.send(self, fl_ctx, {"score": out.score}, int(meta.get(p.ROUND) or 0), tracking.RELEASED)
        return DXO(DataKind.WEIGHTS, data={p.PLAIN: out.update}, meta=meta).to_shareable()


class EncryptUpdate(ResultFilter):
    """Result of an adapter task: {"plain": u (D,)} -> ciphertext chunks; writes this site's key id into the header."""

    def __init__(self, encryption: Mapping[str, Any] | None = None, rounds: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.encryption, self.rounds = encryption, rounds
        self._encryption = parse(EncryptionSettings, encryption, "encryption")
        self._rounds = parse(RoundSettings, rounds, "rounds")

    def outgoing(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        dxo = from_shareable(shareable)
        if dxo.data_kind != DataKind.WEIGHTS or set(dxo.data) != {p.PLAIN}:
            raise ContentBlockedException(f"only {p.PLAIN!r} can be encrypted, got {dxo.data_kind!r}")
        context = client_context(fl_ctx, self._encryption)
        own = key_id(context)
        if dxo.meta.get(p.KEY_ID):
            check_key_id(dxo.meta[p.KEY_ID], own, "task")
        chunks = encrypt(dxo.data[p.PLAIN], context, eta=self._rounds.eta)
        return DXO(DataKind.WEIGHTS, data=to_params(chunks), meta={**dxo.meta, p.KEY_ID: own}).to_shareable()


class _Reservation:
    """What the ledger holds for the task at hand, passed from `ReserveRelease` to `PrivacyFilter`, used once."""

    def __init__(self, entry: Entry, views: Mapping[str, View], head: Head,
                 sample: PoissonSample | None) -> None:
        self.entry, self.views, self.head, self.sample = entry, views, head, sample

    def covers(self, meta: Mapping[str, Any], release: Release) -> bool:
        entry = self.entry
        return (entry.phase == p.TASK_ADAPTER and entry.release == release and entry.job == str(meta.get(p.JOB))
                and entry.round == int(meta.get(p.ROUND) or 0) and entry.nonce == str(meta.get(p.NONCE)))


def _release(privacy: PrivacySettings, reliability: ReliabilitySettings, phase: str) -> Release:
    """What an adapter round (any other phase: no noise at all) publishes about each identity."""
    return planned_release(privacy, reliability) if phase == p.TASK_ADAPTER else Release(None)
