"""The last filter of every result: what may leave a site (README, "How one round protects a person"), nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from privfedtalk_flare.encryption.packing import CiphertextError
from privfedtalk_flare.encryption.sums import rewritten
from privfedtalk_flare.evaluation.summary import METRICS, ROWS
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.books import is_booked, shares_noise
from privfedtalk_flare.flare.chunks import ChunkError, from_params, to_params
from privfedtalk_flare.flare.events import claims_dp, guard_site
from privfedtalk_flare.flare.guard import ResultFilter
from privfedtalk_flare.flare.keys import client_context
from privfedtalk_flare.flare.replies import bare
from privfedtalk_flare.flare.scalars import SCALARS, TENSOR, number, statistic, text
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.settings import EncryptionSettings, parse
from privfedtalk_flare.training.place import SitePlace

_META = {
    p.TASK_ADAPTER: (*p.HEADER, p.VALUES, p.BUSY, p.SNR, p.SCORE, p.COUNT, p.CLIP_BIT, p.IDENTITIES, p.EPSILON,
                     p.LEDGER),
    p.TASK_PERSONALIZE: (*p.HEADER, p.BUSY, p.SNR, p.IDENTITIES, p.ADAPTERS),
    p.TASK_VALIDATE: (*p.HEADER, p.BUSY, p.SNR, p.IDENTITIES, p.VIDEOS),
    p.TASK_BACKBONE: (*p.HEADER, p.PHASE, p.COUNT, p.LOSS, p.BUSY)}
"""Which scalars may leave in the result of which task."""

_HEADERS = {ReservedHeaderKey.RC, ReservedHeaderKey.CONTENT_TYPE}

_TRAINED = ("loss",)
"""What `personalize` may say of its training."""
_OPAQUE = {p.ADAPTERS: re.compile(r"identities/[0-9a-f]{4,12}/adapter\.safetensors"),
           p.VIDEOS: re.compile(r"videos/[0-9a-f]{4,12}\.mp4")}
"""Names of files, by the opaque ids under which a site knows its people: at most one a person."""


class EgressFilter(ResultFilter):
    """Lets through encrypted chunks, named scalars in range, metrics over enough people, and status words.

    Plain weights leave in the `backbone` phase only, if the site allows it; a plain update only in a job without
    encryption, if the site does not require it. Everything else is blocked, and named in the site's own log. What
    passes is made anew of plain numbers, strings and arrays. As a handler of FLARE's events it keeps a job's events
    and public properties at the site as well (events.py), and says at the start of a run what the site would refuse.
    """

    def __init__(self, encryption: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.encryption = encryption
        self._encryption = parse(EncryptionSettings, encryption, "encryption")

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        guard_site(event_type, fl_ctx, self.logger.warning, claims_dp)

    def outgoing(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        if task not in _META:
            raise ContentBlockedException(f"results of task {task!r} may not leave; the choices are {', '.join(_META)}")
        extra = (set(shareable) - {"DXO", ReservedHeaderKey.HEADERS}
                 | set(shareable.get(ReservedHeaderKey.HEADERS) or {}) - _HEADERS)
        if extra:
            raise ContentBlockedException(f"task {task}: headers {sorted(map(str, extra))} may not leave")
        try:
            dxo = from_shareable(shareable)
            dxo = DXO(str(getattr(dxo.data_kind, "value", dxo.data_kind)), data=bare(dxo.data), meta=bare(dxo.meta))
        except (TypeError, ValueError) as error:
            raise ContentBlockedException(f"task {task}: {error}") from error
        for key, value in dxo.meta.items():
            if key not in _META[task]:
                raise ContentBlockedException(f"task {task}: {key!r} may not leave; the choices are "
                                              f"{', '.join(_META[task])}")
            if not SCALARS[key](value):
                raise ContentBlockedException(f"task {task}: {key} {str(value)[:80]!r} has a wrong type or range")
        _check_words(dxo, task, fl_ctx)
        if task in (p.TASK_ADAPTER, p.TASK_BACKBONE) and not is_booked(fl_ctx, dxo.meta):
            raise ContentBlockedException(f"task {task}: the ledger holds no release for it; the job's task data "
                                          "filters must end with ReserveRelease")
        place = place_of(fl_ctx)
        if task == p.TASK_ADAPTER:
            self._check_update(dxo, place, fl_ctx)
        elif task == p.TASK_BACKBONE:
            _check_backbone(dxo, place)
        else:
            _check_metrics(dxo, task, place)
        return dxo.to_shareable()

    def _check_update(self, dxo: DXO, place: SitePlace, fl_ctx: FLContext) -> None:
        """Ciphertext of this site's own context, so that nothing else can pass as bytes."""
        size = dxo.meta.get(p.VALUES)
        if dxo.data_kind != DataKind.WEIGHTS or size is None:
            raise ContentBlockedException(f"task adapter: {dxo.data_kind!r} without {p.VALUES!r} may not leave")
        if set(dxo.data) == {p.PLAIN}:
            if self._encryption.scheme != "off" or place.require_encryption or shares_noise(fl_ctx):
                raise ContentBlockedException("task adapter: an unencrypted update may not leave; the job must encrypt "
                                              "it, or, where sites do not share the noise, this site's "
                                              "privfedtalk.yaml say require_encryption: false")
            plain = dxo.data[p.PLAIN]
            if not (isinstance(plain, np.ndarray) and plain.dtype == np.float32 and plain.shape == (size,)
                    and np.isfinite(plain).all()):
                raise ContentBlockedException(f"task adapter: the update is not {size} finite float32 values")
            return
        try:
            dxo.data = to_params(rewritten(from_params(dxo.data), size, client_context(fl_ctx, self._encryption)))
        except (ChunkError, CiphertextError) as error:
            raise ContentBlockedException(f"task adapter: {error}") from error


def _check_words(dxo: DXO, task: str, fl_ctx: FLContext) -> None:
    """The strings of a result: the job's id, and names of files that are opaque ids."""
    job = dxo.meta.get(p.JOB)
    if job is not None and job != fl_ctx.get_job_id():
        raise ContentBlockedException(f"task {task}: {p.JOB} {job!r:.80} is not this job, {fl_ctx.get_job_id()!r}")
    for key in dxo.meta.keys() & _OPAQUE:
        names, people = dxo.meta[key], dxo.meta.get(p.IDENTITIES, 0)
        if not all(text(_OPAQUE[key])(name) for name in names) or not len(set(names)) == len(names) <= people:
            raise ContentBlockedException(f"task {task}: {key} {str(names)[:80]} may not leave: not one opaque id a "
                                          f"person, for {people} people")


def _check_backbone(dxo: DXO, place: SitePlace) -> None:
    if not place.allow_backbone:
        raise ContentBlockedException("task backbone: this site's privfedtalk.yaml says allow_backbone: false")
    good = dxo.data_kind == DataKind.WEIGHTS and all(
        text(TENSOR)(name) and isinstance(value, np.ndarray) and value.dtype.kind == "f"
        and np.isfinite(value).all() for name, value in dxo.data.items())
    if not good:
        raise ContentBlockedException(f"task backbone: {dxo.data_kind!r} holds more than finite named weights (floats)")


def _check_metrics(dxo: DXO, task: str, place: SitePlace) -> None:
    """Means over at least `min_identities` people: {"metrics": {name: value}} or {"rows": {row: {name: {mean, ..}}}}.
    """
    key, people = (p.METRICS if task == p.TASK_PERSONALIZE else "rows"), dxo.meta.get(p.IDENTITIES, 0)
    if dxo.data_kind != DataKind.METRICS or set(dxo.data) != {key} or not isinstance(dxo.data[key], dict):
        raise ContentBlockedException(f"task {task}: only {{{key!r}: ...}} may leave, got "
                                      f"{sorted(map(str, dxo.data))[:5]}")
    tables = {key: dxo.data[key]} if task == p.TASK_PERSONALIZE else dxo.data[key]
    rows, names = ((key,), _TRAINED) if task == p.TASK_PERSONALIZE else (ROWS, METRICS)
    if any(tables.values()) and people < place.min_identities:
        raise ContentBlockedException(f"task {task}: metrics of {people} people; this site's privfedtalk.yaml asks for "
                                      f"min_identities {place.min_identities}")
    for row, table in tables.items():
        if row not in rows:  # an empty one, too: its name is free text
            raise ContentBlockedException(f"task {task}: row {row!r:.80} may not leave; the choices are "
                                          f"{', '.join(rows)}")
        for name, value in (table.items() if isinstance(table, dict) else [("?", None)]):
            good = number(value) if task == p.TASK_PERSONALIZE else (statistic(value, place.min_identities)
                                                                     and value["n"] <= people)
            if not (good and name in names):
                raise ContentBlockedException(f"task {task}: {row}/{name} {str(value)[:80]!r} may not leave: not "
                                              "finite, not a metric, or over fewer people than min_identities "
                                              f"{place.min_identities} or more than there are")
