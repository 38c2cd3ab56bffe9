"""What a job's code fires: FLARE's own handlers in FLARE's own order, and only listed scalars in range come out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE, AnalyticsDataType
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FedEventHeader, FLContextKey, ProcessType, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.app_common.widgets.convert_to_fed_event import ConvertToFedEvent
from nvflare.widgets.fed_event import FedEventRunner
from sites import SITE, context
from strategies import SECRET, events

from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.egress import EgressFilter
from privfedtalk_flare.flare.events import RANGES, close_properties, guard_event
from privfedtalk_flare.flare.policy import SitePolicy


class Wire(FedEventRunner):
    """FLARE's poster of federation events, with the last step recorded: what would be sent, and with which peer."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[Shareable, dict[str, Any]]] = []

    def fire_and_forget_request(self, request: Shareable, fl_ctx: FLContext, targets: Any = None,
                                secure: bool = False) -> None:
        self.sent.append((request, fl_ctx.get_all_public_props()))


class Process:
    """A client's job process as far as events go: its handlers in the order in which FLARE has them."""

    def __init__(self, guard: FLComponent) -> None:
        self.wire, self.code = Wire(), FLComponent()
        convert = ConvertToFedEvent([ANALYTIC_EVENT_TYPE, EventType.ERROR_LOG_AVAILABLE])
        self.handlers = [self.code, convert, guard, self.wire]

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        fire_event_to_components(event_type, self.handlers, fl_ctx)


def scalar(tag: str, value: float, **more: Any) -> Shareable:
    return create_analytic_dxo(tag=tag, value=value, data_type=AnalyticsDataType.SCALAR,
                               **{"global_step": 1, **more}).to_shareable()


def fired(root: Path, event_type: str, data: Shareable, guard: FLComponent | None = None) -> list[Shareable]:
    process = Process(guard or SitePolicy())
    fl_ctx = context(root, engine=process)
    if event_type.startswith("fed."):
        with suppress(TypeError, ValueError):  # headers on which FLARE itself breaks, and sends nothing
            process.code.fire_fed_event(event_type, data, fl_ctx)
    else:
        fl_ctx.set_prop(FLContextKey.EVENT_DATA, data, private=True, sticky=False)
        process.code.fire_event(event_type, fl_ctx)
    return [sent for sent, _ in process.wire.sent]


def told(data: Shareable) -> tuple[str, float]:
    """The one scalar in what was sent. Fails where there is anything else."""
    assert set(data) == {"DXO", ReservedHeaderKey.HEADERS}
    assert data[ReservedHeaderKey.HEADERS].keys() <= {
        ReservedHeaderKey.CONTENT_TYPE, FedEventHeader.EVENT_TYPE, FedEventHeader.ORIGIN, FedEventHeader.TIMESTAMP,
        FedEventHeader.EVENT_ID}
    assert data.get_header(FedEventHeader.EVENT_TYPE) == tracking.FED_EVENT
    assert set(data["DXO"]) == {"kind", "data", "meta"}
    assert set(data["DXO"]["meta"]) == {"analytics_data_type", "tracker_key"}
    held = data["DXO"]["data"]
    assert set(held) == {"track_key", "track_value", "global_step", "analytics_kwargs"}
    assert held["analytics_kwargs"] == {"global_step": held["global_step"]}
    assert type(held["track_key"]) is str and type(held["track_value"]) is float and type(held["global_step"]) is int
    return held["track_key"], held["track_value"]


@given(event=events())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_fired_only_listed_scalars_in_range_are_posted(tmp_path: Path, event: tuple[str, Any]) -> None:
    for sent in fired(tmp_path, *event):
        tag, value = told(sent)
        assert tag in tracking.SITE_WITH_DP and RANGES[tag](value)


def test_listed_scalars_get_through_as_they_were(tmp_path: Path) -> None:
    for tag, value in (("snr", 0.663), ("identities", 3)):
        assert [told(sent) for sent in fired(tmp_path, ANALYTIC_EVENT_TYPE, scalar(tag, value))] == [(tag, value)]
    process = Process(SitePolicy())
    tracking.send(process.code, context(tmp_path, engine=process), {"snr": 0.5}, 2, tracking.SITE_WITH_DP)
    assert told(process.wire.sent[0][0]) == ("snr", 0.5)


@pytest.mark.parametrize("tag", ["seconds/training", "score"])
def test_time_and_score_get_through_without_dp_only(tmp_path: Path, tag: str) -> None:
    for with_dp in (True, False):
        class Guard(FLComponent):
            def handle_event(self, event_type: str, fl_ctx: FLContext, with_dp: bool = with_dp) -> None:
                if fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) == "federation":
                    guard_event(event_type, fl_ctx, self.logger.warning, lambda _: with_dp)

        assert len(fired(tmp_path, ANALYTIC_EVENT_TYPE, scalar(tag, 0.5), Guard())) == (not with_dp)


@pytest.mark.parametrize(("tag", "value", "more"), [
    ("loss", 0.1, {}), ("clip_fraction", 0.5, {}), ("snr", 0.66312, {}), ("snr", -1.0, {}), ("snr", float("nan"), {}),
    ("identities", 1.5, {}), ("identities", 0, {}), ("snr", 0.5, {"global_step": 10 ** 12}),
    ("snr", 0.5, {"run_name": SECRET}), (SECRET, 0.5, {})])
def test_what_is_kept_is_named_in_the_sites_own_log(tmp_path: Path, caplog: pytest.LogCaptureFixture, tag: str,
                                                    value: float, more: dict[str, Any]) -> None:
    assert fired(tmp_path, ANALYTIC_EVENT_TYPE, scalar(tag, value, **more)) == []
    assert tag in caplog.text and "kept at the site" in caplog.text
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_jobs_error_log_does_not_leave_as_an_event(tmp_path: Path) -> None:
    process = Process(EgressFilter())
    process.code.log_error(context(tmp_path, engine=process), f"cannot read {SECRET}", fire_event=True)
    assert process.wire.sent == []
    bare = Process(FLComponent())
    bare.code.log_error(context(tmp_path, engine=bare), f"cannot read {SECRET}", fire_event=True)
    assert len(bare.wire.sent) == 1, "without the guard FLARE posts it: this is what the guard is for"


def test_events_that_come_in_and_those_of_a_server_are_let_alone(tmp_path: Path) -> None:
    data = Shareable({"any": "thing"})
    data.set_header(FedEventHeader.DIRECTION, "in")
    fl_ctx = context(tmp_path)
    fl_ctx.set_prop(FLContextKey.EVENT_DATA, data, private=True, sticky=False)
    fl_ctx.set_prop(FLContextKey.EVENT_SCOPE, "federation", private=True, sticky=False)
    SitePolicy().handle_event("fed.any", fl_ctx)
    assert data["any"] == "thing" and data.get_header(FedEventHeader.DIRECTION) == "in"
    fl_ctx.set_prop(FLContextKey.PROCESS_TYPE, ProcessType.SERVER_JOB, private=True, sticky=False)
    data.set_header(FedEventHeader.DIRECTION, "out")
    SitePolicy().handle_event("fed.any", fl_ctx)
    assert data.get_header(FedEventHeader.DIRECTION) == "out"


def test_public_properties_of_a_job_ride_on_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = Process(SitePolicy())
    fl_ctx = context(tmp_path, engine=process)
    own = fl_ctx.get_all_public_props()
    fl_ctx.set_prop("aside", SECRET, private=False, sticky=False)
    fl_ctx.set_prop("always", SECRET, private=False, sticky=True)
    fl_ctx.set_prop(ReservedKey.CLIENT_NAME, SECRET, private=False, sticky=True)
    send_analytic_dxo(process.code, create_analytic_dxo(
        tag="snr", value=0.5, data_type=AnalyticsDataType.SCALAR, global_step=1), fl_ctx)
    assert [peer for _, peer in process.wire.sent] == [own] and own[ReservedKey.IDENTITY_NAME] == SITE
    assert fl_ctx.get_prop(ReservedKey.MANAGER).new_context().get_all_public_props() == own
    assert "public property 'aside'" in caplog.text and SECRET not in caplog.text
    close_properties(fl_ctx, pytest.fail)  # nothing is left to say


def test_what_is_kept_can_still_be_read_at_the_site(tmp_path: Path) -> None:
    data = scalar("loss", 0.25)
    assert fired(tmp_path, ANALYTIC_EVENT_TYPE, data) == []
    assert data["DXO"]["data"]["track_value"] == 0.25
