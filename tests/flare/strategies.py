"""Everything that a job's code can hand to FLARE as a result or an event: for property tests of what leaves a site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsDataType
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.scalars import SCALARS

SECRET = "Ann Lee"
"""A person's name: no listed word may hold a space, so wherever it shows up it got through."""
NUMBER = 0.7531902468
"""A private number, more precise than any released one."""


class Word(str):
    """A string with something in its pocket."""

    __slots__ = ("pocket",)


class Array(np.ndarray):
    """An array of a job's own class."""


def word(text: str) -> Word:
    made = Word(text)
    made.pocket = SECRET
    return made


_LEAVES = st.one_of(
    st.sampled_from([SECRET, SECRET.encode(), word("ok"), NUMBER, np.float64(NUMBER), True, None, 0, -1, 10 ** 30, "",
                     float("nan"), float("inf"), "ok", "0" * 64, "videos/ann.mp4", "identities/ann/adapter.safetensors",
                     "identities/0123456789ab/adapter.safetensors"]),
    st.builds(lambda: np.frombuffer(SECRET.encode(), np.uint8)),
    st.builds(lambda: np.array([NUMBER, NUMBER])),
    st.builds(lambda: np.zeros(3, np.float32).view(Array)),
    st.builds(lambda: np.array([SECRET], object)),
    st.builds(lambda: DXO(DataKind.WEIGHTS, data={"w": np.array([NUMBER])})))

_NAMES = st.sampled_from(sorted({*SCALARS, p.METRICS, p.PLAIN, p.STATUS, "rows", "loss", "shared", "sync", "mean",
                                 "std", "n", "chunk_0000", "weights", SECRET, "kind", "data", "meta", "DXO"}))

TREES = st.recursive(_LEAVES, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.one_of(_NAMES, st.just(7)), inner, max_size=3)), max_leaves=6)
"""Nested values under listed and unlisted names."""

MAPS = st.dictionaries(_NAMES, TREES, max_size=4)


def _dxo(kind: Any, data: Any, meta: dict[str, Any]) -> Shareable:
    made = Shareable()
    made.set_header(ReservedHeaderKey.CONTENT_TYPE, "DXO")
    made["DXO"] = {"kind": kind, "data": data, "meta": meta}
    return made


def _model(meta: dict[str, Any], kind: str) -> Shareable:
    return FLModelUtils.to_shareable(FLModel(params={"w": np.array([NUMBER])}, params_type=kind, current_round=1,
                                             metrics={"loss": NUMBER}, meta={str(key): meta[key] for key in meta}))


def _in_costume(value: Any) -> Any:
    """The same value as an instance of a class of the job's own, where there is one that passes for it."""
    if isinstance(value, str):
        return word(value)
    if isinstance(value, np.ndarray):
        return value.view(Array)
    return np.float64(value) if isinstance(value, float) else value


_SPOILERS: dict[str, Callable[[Shareable, Callable[[Any], Any]], Any]] = {
    "nothing": lambda made, draw: None,
    "meta": lambda made, draw: made["DXO"]["meta"].update({draw(_NAMES): draw(TREES)}),
    "data": lambda made, draw: made["DXO"]["data"].update({draw(_NAMES): draw(TREES)}),
    "deeper": lambda made, draw: [inner.update({draw(_NAMES): draw(TREES)}) for inner in made["DXO"]["data"].values()
                                  if isinstance(inner, dict)],
    "dxo": lambda made, draw: made["DXO"].update({draw(_NAMES): draw(TREES)}),
    "less": lambda made, draw: made["DXO"]["meta"].pop(draw(st.sampled_from(sorted(made["DXO"]["meta"])))),
    "costume": lambda made, draw: [part.update({key: _in_costume(value) for key, value in part.items()})
                                   for part in (made["DXO"], made["DXO"]["meta"], made["DXO"]["data"])],
    "key": lambda made, draw: made.update({draw(_NAMES): draw(TREES)}),
    "header": lambda made, draw: made.set_header(draw(_HEADERS), draw(TREES)),
    "code": lambda made, draw: made.set_return_code(draw(_CODES)),
    "headers": lambda made, draw: made.update({ReservedHeaderKey.HEADERS: draw(TREES)})}
"""Each turns a result into one that holds more, less or other than it should."""

_HEADERS = st.sampled_from([ReservedHeaderKey.PEER_PROPS, ReservedHeaderKey.COOKIE_JAR, ReservedHeaderKey.ERROR,
                            ReservedHeaderKey.PEER_CTX, ReservedHeaderKey.CONTENT_TYPE, "aside"])
_CODES = st.sampled_from([ReturnCode.OK, ReturnCode.EXECUTION_EXCEPTION, SECRET, [SECRET], np.array([NUMBER, NUMBER]),
                          word(ReturnCode.OK), None])


@st.composite
def results(draw: Callable[[Any], Any], good: Callable[[], Shareable] | None = None) -> Shareable:
    """A result: no DXO at all, a DXO of any kind with any content, collections, FLModels; or a `good` one, which is
    then given, once or twice, content, headers, peer properties or a return code that it should not have."""
    kinds = st.sampled_from([*DataKind, "WEIGHTS", "PRIVFEDTALK_RAW", SECRET, word("METRICS"), None])
    form = draw(st.sampled_from(["good"] * (6 if good else 0) + ["plain", "dxo", "collection", "model"]))
    if form == "good":
        made = good()
        for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
            try:
                _SPOILERS[draw(st.sampled_from(sorted(_SPOILERS)))](made, draw)
            except (AttributeError, LookupError, TypeError, ValueError):  # the first one left nothing for the second
                return made
        return made
    if form == "plain":
        made = Shareable(draw(MAPS))
    elif form == "collection":
        inner = {name: DXO(draw(st.sampled_from(list(DataKind))), data={"w": np.array([NUMBER])}) for name in "ab"}
        made = _dxo(DataKind.COLLECTION, inner, draw(MAPS))
    elif form == "model":
        made = _model(draw(MAPS), draw(st.sampled_from([ParamsType.FULL, ParamsType.DIFF])))
    else:
        made = _dxo(draw(kinds), draw(st.one_of(MAPS, TREES)), draw(MAPS))
    if draw(st.booleans()):
        _SPOILERS[draw(st.sampled_from(["header", "code", "key", "headers"]))](made, lambda one: draw(one))
    return made


@st.composite
def events(draw: Callable[[Any], Any]) -> tuple[str, Any]:
    """(event type, its data) as a job's code may fire it: scalars, listed or not, texts, images, anything."""
    types = st.sampled_from([ANALYTIC_EVENT_TYPE, tracking.FED_EVENT, EventType.ERROR_LOG_AVAILABLE, f"fed.{SECRET}"])
    tags = st.sampled_from([*sorted(tracking.SITE | tracking.RELEASED), "loss", "clip_fraction", "score/raw", SECRET])
    values = st.sampled_from([0.5, 2, 3.0, 0.0625, 0.123, NUMBER, -1, np.float32(0.5), 10 ** 30, True])
    if draw(st.integers(0, 3)):
        value = draw(values)
        data = create_analytic_dxo(tag=draw(tags), value=value, data_type=AnalyticsDataType.SCALAR,
                                   **draw(st.sampled_from([{"global_step": 1}, {}, {"global_step": 10 ** 12},
                                                           {"global_step": 1, "run_name": SECRET}]))).to_shareable()
    else:
        kind, value = draw(st.sampled_from([
            (AnalyticsDataType.TEXT, SECRET), (AnalyticsDataType.IMAGE, np.array([NUMBER])),
            (AnalyticsDataType.SCALARS, {"snr": 0.5, SECRET: 1.0}), (AnalyticsDataType.TAGS, {"who": SECRET})]))
        data = create_analytic_dxo(tag=draw(tags), value=value, data_type=kind, global_step=1).to_shareable()
    spoil = draw(st.sampled_from(["nothing", "nothing", "header", "key", "data", "meta", "dxo", "other"]))
    if spoil == "header":
        data.set_header("aside", draw(TREES))
    elif spoil == "key":
        data[draw(_NAMES)] = draw(TREES)
    elif spoil in ("data", "meta"):
        data["DXO"][spoil].update(draw(MAPS))
    elif spoil == "dxo":
        data["DXO"].update(draw(MAPS))
    elif spoil == "other":
        data = draw(results())
    return draw(types), data
