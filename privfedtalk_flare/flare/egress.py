"""The last filter of every result: what may leave a site, and nothing else (PROTOCOL, "What may leave a site")."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException, Filter
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from privfedtalk_flare.encryption.packing import CiphertextError
from privfedtalk_flare.encryption.sums import check_upload
from privfedtalk_flare.federation.isfa import ScalarError, check_scalars
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.chunks import ChunkError, from_params
from privfedtalk_flare.flare.keys import client_context
from privfedtalk_flare.flare.replies import without_payload
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.privacy.accountant import UNBOUNDED, VIEWS
from privfedtalk_flare.settings import EncryptionSettings, parse
from privfedtalk_flare.training.place import SitePlace

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_METRIC = re.compile(r"[a-z][a-z0-9_]{0,39}")
_PATH = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_TENSOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,299}")
_HEX = re.compile(r"[0-9a-f]{64}")
_MOST = 1_000_000


def _number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            and low <= value <= high)


def _whole(value: object, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= _MOST * 1000


def _text(pattern: re.Pattern[str], empty: bool = False) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and ((empty and not value) or pattern.fullmatch(value) is not None)


def _score(value: object) -> bool:
    try:
        check_scalars(value, 1, max_clips=1)
    except ScalarError:
        return False
    return True


def _names(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 1000 and all(_text(_PATH)(name) for name in value)


def _busy(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 1000 and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(_number(t, 0, 1e11) for t in pair) for pair in value)


def _epsilon(value: object) -> bool:
    return isinstance(value, dict) and set(value) <= set(VIEWS) and all(
        e == UNBOUNDED if isinstance(e, str) else _number(e, 0) for e in value.values())


def _ledger(value: object) -> bool:
    return (isinstance(value, dict) and set(value) == {"count", "head"} and _whole(value["count"])
            and _text(_HEX)(value["head"]))


_SCALARS: Mapping[str, Callable[[object], bool]] = {
    p.JOB: _text(_WORD), p.ROUND: _whole, p.NONCE: _text(_WORD), p.SPEC: _text(_HEX, empty=True),
    p.BACKBONE: _text(_WORD, empty=True), p.KEY_ID: _text(_HEX, empty=True), p.VALUES: lambda v: _whole(v, 1),
    p.BUSY: _busy, p.SNR: lambda v: _number(v, 0), p.SCORE: _score, p.COUNT: lambda v: _whole(v, 1),
    p.IDENTITIES: lambda v: _whole(v, 1), p.EPSILON: _epsilon, p.LEDGER: _ledger, p.ADAPTERS: _names, p.VIDEOS: _names,
    p.PHASE: _text(_METRIC), p.LOSS: _number}
"""Every scalar that may leave a site, and its range."""

_META = {
    p.TASK_ADAPTER: (*p.HEADER, p.VALUES, p.BUSY, p.SNR, p.SCORE, p.COUNT, p.IDENTITIES, p.EPSILON, p.LEDGER),
    p.TASK_PERSONALIZE: (*p.HEADER, p.BUSY, p.SNR, p.IDENTITIES, p.ADAPTERS),
    p.TASK_VALIDATE: (*p.HEADER, p.BUSY, p.SNR, p.IDENTITIES, p.VIDEOS),
    p.TASK_BACKBONE: (*p.HEADER, p.PHASE, p.COUNT, p.LOSS, p.BUSY)}
"""Which of them in the result of which task."""

_HEADERS = {ReservedHeaderKey.RC, ReservedHeaderKey.CONTENT_TYPE}


class EgressFilter(Filter):
    """Lets through encrypted chunks, named scalars in range, metrics over enough people, and status words.

    Plain weights leave in the `backbone` phase only, if the site allows it; a plain update only in a job without
    encryption, if the site does not require it. Everything else raises `ContentBlockedException`, which names it in
    the site's own log. A failed result loses its payload.
    """

    def __init__(self, encryption: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.encryption = encryption
        self._encryption = parse(EncryptionSettings, encryption, "encryption")

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        if shareable.get_return_code() != ReturnCode.OK:
            return without_payload(shareable)
        task = fl_ctx.get_prop(FLContextKey.TASK_NAME)
        if task not in _META:
            raise ContentBlockedException(f"results of task {task!r} may not leave; the choices are {', '.join(_META)}")
        extra = (set(shareable) - {"DXO", ReservedHeaderKey.HEADERS}
                 | set(shareable.get(ReservedHeaderKey.HEADERS) or {}) - _HEADERS)
        if extra:
            raise ContentBlockedException(f"task {task}: headers {sorted(map(str, extra))} may not leave")
        try:
            dxo = from_shareable(shareable)
        except ValueError as error:
            raise ContentBlockedException(f"task {task}: {error}") from error
        for key, value in dxo.meta.items():
            if key not in _META[task]:
                raise ContentBlockedException(f"task {task}: {key!r} may not leave; the choices are "
                                              f"{', '.join(_META[task])}")
            if not _SCALARS[key](value):
                raise ContentBlockedException(f"task {task}: {key} {str(value)[:80]!r} has a wrong type or range")
        place = place_of(fl_ctx)
        if task == p.TASK_ADAPTER:
            self._check_update(dxo, place, fl_ctx)
        elif task == p.TASK_BACKBONE:
            _check_backbone(dxo, place)
        else:
            _check_metrics(dxo, task, place)
        return DXO(dxo.data_kind, data=dxo.data, meta=dxo.meta).to_shareable()

    def _check_update(self, dxo: DXO, place: SitePlace, fl_ctx: FLContext) -> None:
        """Ciphertext of this site's own context, so that nothing else can pass as bytes."""
        size = dxo.meta.get(p.VALUES)
        if dxo.data_kind != DataKind.WEIGHTS or size is None:
            raise ContentBlockedException(f"task adapter: {dxo.data_kind!r} without {p.VALUES!r} may not leave")
        if set(dxo.data) == {p.PLAIN}:
            if self._encryption.scheme != "off" or place.require_encryption:
                raise ContentBlockedException("task adapter: an unencrypted update may not leave; the job must encrypt "
                                              "it, or this site's privfedtalk.yaml say require_encryption: false")
            plain = dxo.data[p.PLAIN]
            if not (isinstance(plain, np.ndarray) and plain.dtype == np.float32 and plain.shape == (size,)
                    and np.isfinite(plain).all()):
                raise ContentBlockedException(f"task adapter: the update is not {size} finite float32 values")
            return
        try:
            check_upload(from_params(dxo.data), size, client_context(fl_ctx, self._encryption))
        except (ChunkError, CiphertextError) as error:
            raise ContentBlockedException(f"task adapter: {error}") from error


def _check_backbone(dxo: DXO, place: SitePlace) -> None:
    if not place.allow_backbone:
        raise ContentBlockedException("task backbone: this site's privfedtalk.yaml says allow_backbone: false")
    good = dxo.data_kind == DataKind.WEIGHTS and all(
        _text(_TENSOR)(name) and isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
        and np.isfinite(value).all() for name, value in dxo.data.items())
    if not good:
        raise ContentBlockedException(f"task backbone: {dxo.data_kind!r} holds more than finite named weights")


def _check_metrics(dxo: DXO, task: str, place: SitePlace) -> None:
    """Means over at least `min_identities` people: {"metrics": {name: value}} or {"rows": {row: {name: {mean, ..}}}}.
    """
    key, people = (p.METRICS if task == p.TASK_PERSONALIZE else "rows"), dxo.meta.get(p.IDENTITIES, 0)
    if dxo.data_kind != DataKind.METRICS or set(dxo.data) != {key} or not isinstance(dxo.data[key], dict):
        raise ContentBlockedException(f"task {task}: only {{{key!r}: ...}} may leave, got "
                                      f"{sorted(map(str, dxo.data))[:5]}")
    if people < place.min_identities:
        raise ContentBlockedException(f"task {task}: metrics of {people} people; this site's privfedtalk.yaml asks for "
                                      f"min_identities {place.min_identities}")
    tables = {key: dxo.data[key]} if task == p.TASK_PERSONALIZE else dxo.data[key]
    for row, table in tables.items():
        for name, value in (table.items() if isinstance(table, dict) else [("?", None)]):
            good = _text(_METRIC)(row) and _text(_METRIC)(name)
            if task == p.TASK_PERSONALIZE:
                good = good and _number(value)
            else:
                good = (good and isinstance(value, dict) and set(value) == {"mean", "std", "n"}
                        and _number(value["mean"]) and _number(value["std"], 0)
                        and _whole(value["n"], place.min_identities))
            if not good:
                raise ContentBlockedException(f"task {task}: {row}/{name} {str(value)[:80]!r} may not leave: not "
                                              "finite, not a metric, or over fewer people than min_identities "
                                              f"{place.min_identities}")
