"""What leaves a site beside its results: FLARE's federation events, and the public properties of its context.

Both go round every result filter. A component that `ConvertToFedEvent` serves, or that fires federation events of its
own, can send anything the job's code wants; so every such event is checked here, after the handlers of the job and
before FLARE's own that posts it. Public properties of the context ride on each message as the peer's. A job's code
that opens a socket, or FLARE's cell, is beyond this: read it before you let it run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nvflare.apis.analytix import AnalyticsDataType, TrackConst
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ProcessType, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.scalars import SCALARS, WORD, number, text, whole
from privfedtalk_flare.flare.site import place_of

RANGES: Mapping[str, Callable[[float], bool]] = {
    "snr": SCALARS[p.SNR], "score": SCALARS[p.SCORE], "seconds/training": lambda value: number(value, 0),
    "identities": lambda value: number(value, 1) and float(value).is_integer() and whole(int(value), 1)}
"""Every scalar that a site may track, and the check of its range."""

KEPT = "kept at the site"
"""Direction of an event that may not leave: FLARE posts those that go "out", and no others."""

_STARTED = "privfedtalk_started"
_HEADERS = {ReservedHeaderKey.CONTENT_TYPE, FedEventHeader.TARGETS, FedEventHeader.DIRECTION, FedEventHeader.EVENT_TYPE,
            FedEventHeader.ORIGIN, FedEventHeader.TIMESTAMP, FedEventHeader.EVENT_ID}
_DATA = {TrackConst.TRACK_KEY, TrackConst.TRACK_VALUE, TrackConst.GLOBAL_STEP_KEY, TrackConst.KWARGS_KEY}
_META = {TrackConst.DATA_TYPE_KEY, TrackConst.TRACKER_KEY}

_PUBLIC = {ReservedKey.RUN_NUM, ReservedKey.CURRENT_JOB_ID, ReservedKey.IDENTITY_NAME, ReservedKey.CLIENT_NAME,
           ReservedKey.FQSN, ReservedKey.IS_LEAF}
"""What FLARE itself makes public in a client's job process."""


def guard_site(event_type: str, fl_ctx: FLContext, warn: Callable[[str], None],
               with_dp: Callable[[FLContext], bool]) -> None:
    """What a handler of a site does with each of FLARE's events. It never raises: FLARE writes what does into the log
    that leaves.

    At the start of a run it says what the site would refuse at the first task.
    """
    if fl_ctx.get_process_type() == ProcessType.SERVER_JOB:
        return
    try:
        if event_type == EventType.START_RUN and not fl_ctx.get_prop(_STARTED, False):
            fl_ctx.set_prop(_STARTED, True, private=True, sticky=True)
            place_of(fl_ctx)
    except Exception as reason:
        warn(f"every task will be declined: {reason}")
    close_properties(fl_ctx, warn)
    if fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) == EventScope.FEDERATION:
        guard_event(event_type, fl_ctx, warn, with_dp)


def guard_event(event_type: str, fl_ctx: FLContext, warn: Callable[[str], None],
                with_dp: Callable[[FLContext], bool]) -> None:
    """Keeps the federation event at hand at the site unless it is one listed scalar in its range; `warn` is told which.

    What leaves is made anew from tag, value and step, in the event's own Shareable, as FLARE hands that to each handler
    in turn. Events that come in are let alone.
    """
    data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
    if not isinstance(data, Shareable):
        return  # FLARE posts Shareables only
    try:
        if data.get_header(FedEventHeader.DIRECTION, "out") != "out":
            return
        _check(event_type, data, with_dp(fl_ctx))
        told = from_shareable(data).data
        clean = create_analytic_dxo(
            tag=str(told[TrackConst.TRACK_KEY]), value=float(told[TrackConst.TRACK_VALUE]),
            data_type=AnalyticsDataType.SCALAR, global_step=int(told[TrackConst.GLOBAL_STEP_KEY])).to_shareable()
    except Exception as reason:  # whatever a check raises keeps the event here
        clean = Shareable(dict(data) if type(data) is Shareable else None)
        clean[ReservedHeaderKey.HEADERS] = {FedEventHeader.DIRECTION: KEPT}
        warn(f"event {event_type!r:.80} {KEPT}: {reason!s:.200}")
    dict.clear(data)
    dict.update(data, clean)


def _check(event_type: str, data: Shareable, with_dp: bool) -> None:
    """Raises ValueError where the event is anything but a listed scalar in its range."""
    allowed = tracking.SITE_WITH_DP if with_dp else tracking.SITE | tracking.RELEASED
    if type(data) is not Shareable or event_type != tracking.FED_EVENT:
        raise ValueError(f"only {tracking.FED_EVENT} may leave")
    dxo = from_shareable(data)
    extra = (set(data) - {"DXO", ReservedHeaderKey.HEADERS} | set(data[ReservedHeaderKey.HEADERS]) - _HEADERS
             | set(data["DXO"]) - {"kind", "data", "meta"} | set(dxo.data) - _DATA | set(dxo.meta) - _META)
    if extra or dxo.data_kind != DataKind.ANALYTIC:
        raise ValueError(f"{dxo.data_kind!s:.40} with {sorted(map(str, extra))[:5]} may not leave")
    if dxo.meta.get(TrackConst.DATA_TYPE_KEY) is not AnalyticsDataType.SCALAR:
        raise ValueError(f"{dxo.meta.get(TrackConst.DATA_TYPE_KEY)!s:.40} may not leave, scalars may")
    tag, value = dxo.data.get(TrackConst.TRACK_KEY), dxo.data.get(TrackConst.TRACK_VALUE)
    if not isinstance(tag, str) or tag not in allowed:
        raise ValueError(f"scalar {tag!r:.80} may not leave; the choices are {', '.join(sorted(allowed))}")
    if not number(value) or not RANGES[tag](float(value)):
        raise ValueError(f"scalar {tag}: {value!r:.80} has a wrong type or range")
    step = dxo.data.get(TrackConst.GLOBAL_STEP_KEY)
    kwargs = dxo.data.get(TrackConst.KWARGS_KEY, {TrackConst.GLOBAL_STEP_KEY: step})
    if not whole(step) or kwargs != {TrackConst.GLOBAL_STEP_KEY: step}:
        raise ValueError(f"scalar {tag}: step {step!r:.40} with {kwargs!s:.80} has a wrong type or range")


def close_properties(fl_ctx: FLContext, warn: Callable[[str], None]) -> None:
    """Takes every public property out of the context that is not FLARE's own; `warn` is told which."""
    manager = fl_ctx.get_prop(ReservedKey.MANAGER)
    stickers = getattr(manager, "public_stickers", {})  # FLARE has no other way to take a sticky property back
    for key, value in fl_ctx.get_all_public_props().items():
        if key in _PUBLIC and (isinstance(value, bool) or text(WORD)(value)):
            continue
        stickers.pop(key, None)
        fl_ctx.remove_prop(key, force_removal=True)
        warn(f"public property {key!r:.80} {KEPT}")


def claims_dp(fl_ctx: FLContext) -> bool:
    """Whether the job at hand promises differential privacy: unless its own privacy filter says that it does not."""
    from privfedtalk_flare.flare.chains import privacy_of  # which knows the filters, which know this file

    settings = privacy_of(fl_ctx)
    return settings is None or settings.mechanism != "off"
