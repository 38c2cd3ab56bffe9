"""A site whose logs could go to the server takes part in nothing, and says which key of which file to change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import SystemConfigs
from nvflare.fuel.utils.config_service import ConfigService
from sites import SITE, context

from privfedtalk_flare.flare.egress import EgressFilter
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.flare.startup import LogStreamingError


@pytest.fixture(autouse=True)
def _no_configuration() -> Iterator[None]:
    """FLARE keeps what a process was started with in one place."""
    ConfigService.reset()
    yield
    ConfigService.reset()


@pytest.mark.parametrize(("resources", "said"), [
    (None, "local/resources.json is missing"), ({}, "local/resources.json.default is missing"),
    ({"allow_log_streaming": True}, "local/resources.json.default is true")])
def test_a_provisioned_site_that_streams_its_logs_is_refused(tmp_path: Path, resources: Any, said: str) -> None:
    with pytest.raises(LogStreamingError, match=re.escape(f"allow_log_streaming in {said}")) as caught:
        place_of(context(tmp_path, resources=resources, simulated=False))
    assert "local/resources.json" in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_provisioned_site_that_keeps_its_logs_takes_part(tmp_path: Path) -> None:
    assert place_of(context(tmp_path, resources={"allow_log_streaming": False}, simulated=False)).site == SITE


def test_the_file_that_a_site_edited_counts_before_the_provisioned_one(tmp_path: Path) -> None:
    site = context(tmp_path, resources={"allow_log_streaming": True}, simulated=False)
    edited = tmp_path / SITE / "local" / "resources.json"
    edited.write_text(json.dumps({"allow_log_streaming": False}), encoding="utf-8")
    assert place_of(site).site == SITE


def test_what_flare_was_started_with_counts_before_the_file(tmp_path: Path) -> None:
    ConfigService.add_section(SystemConfigs.RESOURCES_CONF, {"allow_log_streaming": True})
    with pytest.raises(LogStreamingError):
        place_of(context(tmp_path, resources={"allow_log_streaming": False}, simulated=False))


def test_a_simulated_site_is_exempt_unless_its_own_file_streams(tmp_path: Path) -> None:
    assert place_of(context(tmp_path)).site == SITE
    assert place_of(context(tmp_path, resources={"class_allow_list": []})).site == SITE
    with pytest.raises(LogStreamingError, match="is true"):
        place_of(context(tmp_path, resources={"allow_log_streaming": True}))


def test_the_start_of_a_run_says_so_once_and_below_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = context(tmp_path, resources={}, simulated=False)
    for one in (EgressFilter(), EgressFilter()):
        one.handle_event(EventType.START_RUN, site)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "every task will be declined" in caplog.text and "allow_log_streaming" in caplog.text
