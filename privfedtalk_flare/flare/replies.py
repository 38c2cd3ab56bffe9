"""Replies of a site before and after its filters: raw ones, which cannot be serialised, and ones without a payload."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable, make_reply

from privfedtalk_flare.flare.protocol import BUSY, HEADER, STATUS, STATUS_FAILED, STATUSES
from privfedtalk_flare.flare.scalars import SCALARS

RAW_KIND = "PRIVFEDTALK_RAW"

_CODES = {code for name, code in vars(ReturnCode).items() if name.isupper()}


class RawUpdates:
    """A site's raw updates, one an identity, on their way from the executor to the privacy filter of one process.

    It is no dataclass and no list on purpose: FLARE's serialiser has no way to write it, so a job that forgets the
    privacy filter fails instead of sending it.
    """

    __slots__ = ("_updates",)

    def __init__(self, updates: Sequence[Any]) -> None:
        self._updates = tuple(updates)

    def take(self) -> tuple[Any, ...]:
        """The updates, once: what was released is gone."""
        updates, self._updates = self._updates, ()
        return updates

    def __reduce__(self) -> NoReturn:
        raise TypeError("raw updates are private to their site and cannot be serialised")

    def __repr__(self) -> str:
        return f"RawUpdates({len(self._updates)} identities)"


def raw_reply(updates: Sequence[Any], meta: Mapping[str, Any]) -> Shareable:
    """The executor's answer to an adapter task: `updates` are `training.site.IdentityUpdate`s, one an identity."""
    return DXO(RAW_KIND, data={"updates": RawUpdates(updates)}, meta=dict(meta)).to_shareable()


def status_reply(status: str, meta: Mapping[str, Any], rc: str = ReturnCode.EXECUTION_EXCEPTION) -> Shareable:
    """An answer without payload: a return code, the status word, the header, and the time the site worked; what of
    these is out of its range is left out."""
    kept = {key: bare(meta[key]) for key in (*HEADER, BUSY) if meta.get(key) is not None and SCALARS[key](meta[key])}
    kept[STATUS] = _word(status, STATUSES, STATUS_FAILED)
    reply = make_reply(_word(rc, _CODES, ReturnCode.EXECUTION_EXCEPTION))
    return DXO(DataKind.METRICS, data={}, meta=kept).update_shareable(reply)


def without_payload(shareable: Shareable) -> Shareable:
    """A failed answer (return code other than OK) stripped to what `status_reply` lets through. It never raises."""
    try:
        rc = shareable.get_return_code()
    except Exception:  # headers that are none
        rc = ReturnCode.EXECUTION_EXCEPTION
    try:
        meta = from_shareable(shareable).meta
        return status_reply(meta.get(STATUS, STATUS_FAILED), meta, rc)
    except Exception:  # FLARE's own error replies carry no content, and a job's may carry anything
        return status_reply(STATUS_FAILED, {}, rc)


def bare(value: Any) -> Any:
    """`value` made anew of Python's own types, and of numpy arrays without a class or a dtype of their own.

    A subclass passes for a number or a string, and FLARE's serialiser may ask it for anything. TypeError on others.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value) if type(value) is not kind else value
    if isinstance(value, dict):
        return {bare(key): bare(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bare(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return np.array(value, dtype=np.dtype(value.dtype.str), copy=True, subok=False)
    raise TypeError(f"{type(value).__name__} may not leave a site")


def _word(value: object, known: Collection[str], otherwise: str) -> str:
    return next((word for word in known if isinstance(value, str) and word == value), otherwise)
