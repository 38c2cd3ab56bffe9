"""One broadcast and its replies, as FLARE hands them over: from several threads, in any order, some too late."""

from __future__ import annotations

import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from privfedtalk_flare.flare import asking
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.asking import AskingController
from privfedtalk_flare.flare.record import RunRecord
from privfedtalk_flare.training.place import SitePlace

HEADER = {p.JOB: "job", p.ROUND: 1, p.NONCE: "aa" * 16, p.SPEC: "", p.BACKBONE: "", p.KEY_ID: ""}
SITES = [f"site-{number}" for number in range(1, 33)]


class Payload(np.ndarray):
    """An update of which it can be seen whether somebody still holds it."""


class Controller(AskingController):
    """FLARE's part is played by `deliver`, which gets the callback that FLARE would call."""

    def __init__(self, deliver) -> None:
        super().__init__(1.0, RunRecord(0.0))
        self.deliver = deliver

    def run(self) -> None:
        raise NotImplementedError

    def broadcast_model(self, data, task_name, targets, timeout, callback) -> None:
        self.deliver(callback, data, targets)


@pytest.fixture(autouse=True)
def at_the_server(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(asking, "place_of", lambda _: SitePlace("server", None, tmp_path / "state", tmp_path / "run"))


def reply(site: str, **meta) -> FLModel:
    update = np.zeros(1000, np.float32).view(Payload)
    return FLModel(params_type=ParamsType.FULL, params={"update": update},
                   meta={**HEADER, "client_name": site, "props": {}, **meta})


def test_replies_from_many_threads_are_taken_one_at_a_time_and_come_out_in_order() -> None:
    busy, most = 0, 0

    def deliver(callback, data, targets) -> None:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(callback, [reply(site) for site in reversed(targets)]))

    def accept(model: FLModel) -> str:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        time.sleep(0.001)
        busy -= 1
        return ""

    answers, good = Controller(deliver)._ask("adapter", {}, HEADER, SITES, accept)
    assert [one.meta["client_name"] for one in good] == sorted(SITES) and len(answers) == len(SITES)
    assert most == 1


def test_the_server_holds_no_update_of_a_site_that_has_been_taken() -> None:
    held: list[weakref.ref] = []
    most = 0

    def deliver(callback, data, targets) -> None:
        nonlocal most
        for site in targets:
            model = reply(site)
            held.append(weakref.ref(model.params["update"]))
            callback(model)
            del model
            gc.collect()
            most = max(most, sum(one() is not None for one in held))

    _, good = Controller(deliver)._ask("adapter", {}, HEADER, SITES, lambda model: "")
    assert len(good) == len(SITES) and most == 0


def test_who_is_refused_does_not_count_and_says_why() -> None:
    def deliver(callback, data, targets) -> None:
        assert callback(reply("site-1")) is True
        assert callback(reply("site-2", nonce="bb" * 16)) is False
        assert callback(reply("site-3")) is False

    controller = Controller(deliver)
    answers, good = controller._ask("adapter", {}, HEADER, SITES[:3],
                                    lambda model: "no" if model.meta["client_name"] == "site-3" else "")
    assert [one.meta["client_name"] for one in answers] == ["site-1", "site-3"]
    assert [one.meta["client_name"] for one in good] == ["site-1"]
    (note,) = controller._record.notes
    assert note.startswith("site-2 refused: nonce is")


def test_a_reply_whose_thread_comes_after_the_task_has_ended_is_refused() -> None:
    kept = []
    controller = Controller(lambda callback, data, targets: kept.append(callback))
    _, good = controller._ask("adapter", {}, HEADER, SITES[:1], lambda model: "")
    assert kept[0](reply("site-1")) is False and good == []
    assert controller._record.notes == ["site-1 refused: its reply came too late"]


def test_a_disk_that_is_full_loses_no_reply(monkeypatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(asking.EchoBook, "remember", full)
    controller = Controller(lambda callback, data, targets: callback(
        reply("site-1", ledger={"id": "a" * 32, "count": 1, "head": "b" * 64})))
    _, good = controller._ask("adapter", {}, HEADER, SITES[:1])
    assert len(good) == 1
    assert "where its ledger stands could not be kept: [Errno 28] No space left on device" in \
        controller._record.notes[0]


def test_what_goes_wrong_while_a_reply_is_taken_is_raised_and_not_lost_in_flares_log() -> None:
    def deliver(callback, data, targets) -> None:
        assert [callback(reply(site)) for site in targets] == [True, False, True]

    def accept(model: FLModel) -> str:
        if model.meta["client_name"] == "site-2":
            raise RuntimeError("a defect")
        return ""

    with pytest.raises(RuntimeError, match="a defect"):
        Controller(deliver)._ask("adapter", {}, HEADER, SITES[:3], accept)


def test_a_book_of_ledgers_that_cannot_be_read_any_more_loses_no_reply(tmp_path: Path) -> None:
    def deliver(callback, data, targets) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "ledgers.json").write_text("{", encoding="utf-8")
        assert callback(reply("site-1", ledger={"id": "a" * 32, "count": 1, "head": "b" * 64}))

    controller = Controller(deliver)
    _, good = controller._ask("adapter", {}, HEADER, SITES[:1])
    assert len(good) == 1 and "not what this server wrote" in controller._record.notes[0]
