"""Budgets and ledgers over whole rounds: the real controller, aggregator, filters and ledgers, in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.client import Client
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from test_filters import SIZE, Site, person

from privfedtalk_flare.evaluation.summary import Summary, load_summary
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.controller import PrivFedTalkController
from privfedtalk_flare.flare.replies import status_reply
from privfedtalk_flare.flare.sections import plain
from privfedtalk_flare.privacy.ledger import Ledger
from privfedtalk_flare.settings import BackboneSettings, PrivacySettings, ReliabilitySettings, RoundSettings

PLAIN = {"scheme": "off"}
NAMES = ("site-1", "site-2", "site-3")
OWN = {p.SPEC: "0" * 64, p.BACKBONE: "1" * 64}


class Engine:
    """What the controller asks of FLARE's engine."""

    def get_clients(self) -> list[Client]:
        return [Client(name, "") for name in NAMES]

    @contextmanager
    def new_context(self) -> Iterator[FLContext]:
        yield FLContextManager(engine=self).new_context()

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        pass


class InOneProcess(PrivFedTalkController):
    """The controller, with three sites called directly where FLARE would broadcast."""

    def __init__(self, root: Path, run: str, budgets: dict[str, float], rounds: RoundSettings,
                 privacy: PrivacySettings) -> None:
        super().__init__(plain(rounds), plain(ReliabilitySettings()), plain(privacy), plain(BackboneSettings()))
        (root / "server" / "local").mkdir(parents=True, exist_ok=True)
        (root / "server" / "startup").mkdir(exist_ok=True)
        (root / "server" / run).mkdir()
        (root / "server" / "local" / "privfedtalk.yaml").write_text(f"state: {root / 'state' / 'server'}\n")
        self.engine, self.abort_signal = Engine(), Signal()
        self.fl_ctx = FLContextManager(engine=self.engine, identity_name="server", job_id="job-1", private_stickers={
            FLContextKey.SIMULATE_MODE: True,
            FLContextKey.WORKSPACE_OBJECT: Workspace(str(root / "server"), "server")}).new_context()
        self.site_of = {}
        for name in NAMES:
            yaml = "require_encryption: false\n" + (f"epsilon_max: {budgets[name]}\n" if name in budgets else "")
            self.site_of[name] = Site(root, yaml=yaml, name=name, encryption=PLAIN, privacy=plain(privacy),
                                      rounds=plain(rounds))

    def get_component(self, component_id: str) -> ISFAAggregator:
        return ISFAAggregator(encryption=PLAIN, rounds=self.rounds)

    def broadcast_model(self, data: FLModel, task_name: str, targets: list[str], timeout: int,
                        callback: Callable[[FLModel], bool]) -> None:
        for name in targets:
            if (answer := self._answer(name, data, task_name)) is not None:
                callback(answer)

    def _answer(self, name: str, data: FLModel, task_name: str) -> FLModel | None:
        site, about = self.site_of[name], {"client_name": name}
        own = {**{key: data.meta[key] for key in p.HEADER}, **OWN}
        if task_name == p.TASK_PERSONALIZE:
            return FLModel(metrics={p.METRICS: {"loss": 0.1}},
                           meta={**own, **about, p.ADAPTERS: ["identities/0a1b/adapter.safetensors"]})
        task = DXO(DataKind.WEIGHTS, data=data.params, meta=data.meta).to_shareable()
        for one in site.data:
            task = one.process(task, site.ctx)
        if status := from_shareable(task).meta.get(p.STATUS):
            assert not self._accept_train_result(name, status_reply(status, own), site.ctx)
            return None
        sent = site.send([person(0), person(1)], {**own, p.VALUES: SIZE})
        return FLModel(params_type=ParamsType.FULL, params=sent.data, meta={**sent.meta, **about})


def finished(root: Path, budgets: dict[str, float] | None = None, job_budget: float | None = None,
             **rounds: Any) -> Summary:
    """A whole run of phases `adapter` and `personalize`, and what it left as its result."""
    settings = RoundSettings(**{"phases": ("adapter", "personalize"), "rounds": 4, "min_sites": 2, **rounds})
    InOneProcess(root, "job-1", budgets or {}, settings, PrivacySettings(epsilon_max=job_budget)).run()
    found = load_summary(root / "server" / "job-1")
    shutil.rmtree(root / "server" / "job-1")
    return found


def booked(root: Path) -> list[int]:
    return [Ledger(root / "state" / name).head.count for name in NAMES]


def test_sites_decline_as_their_budgets_end_and_the_phase_ends_in_order_with_its_result(tmp_path: Path) -> None:
    summary = finished(tmp_path, {"site-1": 5.0, "site-2": 7.0})  # 4.38 after one round at sigma 1, 6.57 after two
    assert [set(entry.sites) for entry in summary.rounds] == [set(NAMES), {"site-2", "site-3"}]
    assert summary.notes.count("site-1 refused: budget_exceeded") == 2
    assert summary.notes.count("site-2 refused: budget_exceeded") == 1
    assert any(note.startswith("phase adapter ended early: 1 good replies, min_sites is 2") for note in summary.notes)
    assert len(summary.adapters) == 3  # the next phase went on with what there was
    assert booked(tmp_path) == [1, 2, 3]  # what was declined costs nothing, what was trained in vain stays spent


def test_a_budget_of_the_job_ends_its_phase_at_every_site(tmp_path: Path) -> None:
    summary = finished(tmp_path, {"site-1": 100.0}, job_budget=5.0)
    assert len(summary.rounds) == 1 and summary.rounds[0].epsilon["receivers"] < 5 and len(summary.adapters) == 3
    assert booked(tmp_path) == [1, 1, 1]
    again = finished(tmp_path, job_budget=5.0)  # what its sites spent before counts
    assert not again.rounds and len(again.adapters) == 3 and booked(tmp_path) == [1, 1, 1]


def test_the_server_keeps_where_every_ledger_stood_and_a_site_that_was_taken_back_hears_of_it(tmp_path: Path) -> None:
    assert not finished(tmp_path, rounds=2).notes
    kept = json.loads((tmp_path / "state" / "server" / "ledgers.json").read_text(encoding="utf-8"))
    for name in NAMES:
        head = Ledger(tmp_path / "state" / name).head
        assert kept[name] == {"id": head.id, "count": 2, "head": head.head}
    shutil.rmtree(tmp_path / "state" / "site-1")
    summary = finished(tmp_path, rounds=1)
    assert summary.notes == ["site-1 refused: ledger_not_trusted"]
    assert set(summary.rounds[0].sites) == {"site-2", "site-3"}
    assert booked(tmp_path) == [0, 3, 3]


def test_the_server_notes_a_ledger_that_does_not_follow_the_one_it_knew(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path, rounds=1)
    shutil.rmtree(tmp_path / "state" / "site-1")
    monkeypatch.setattr("privfedtalk_flare.flare.filters.echo_of", lambda meta, site: None)  # a site that looks away
    notes = finished(tmp_path, rounds=1).notes
    assert len(notes) == 1 and notes[0].startswith("site-1: its ledger ") and "is another one than" in notes[0]
