"""The executor in a FLARE context on a workspace: on real work (an untrained backbone, two rendered people), and on
made-up work where only what leaves it matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from simulation import BRIEF

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import steps
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor, _united
from privfedtalk_flare.flare.filters import ReserveRelease
from privfedtalk_flare.flare.sections import plain
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.flare.steps import STOPPED, StepLog
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
)
from privfedtalk_flare.training.lane import IdentityUpdate
from privfedtalk_flare.training.worklog import read_notes

Executor = Callable[..., PrivFedTalkExecutor]


class _Engine:
    """What an analytics event asks of FLARE's engine; keeps the scalars."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        dxo = from_shareable(fl_ctx.get_prop(FLContextKey.EVENT_DATA))
        self.scalars[dxo.data["track_key"]] = dxo.data["track_value"]


class _Work:
    """Two people of whom nothing is trained: the methods of `SiteWork` that the executor calls."""

    spec = SimpleNamespace(size=400, digest="0" * 64)
    backbone_digest = "1" * 64
    adapters, videos = (), ()

    def prepare(self) -> int:
        return 2

    def adapter_round(self, theta: np.ndarray, number: int) -> list[IdentityUpdate]:
        return [IdentityUpdate(theta, score, 1, loss) for score, loss in ((0.53, 0.25), (0.61, 0.75))]

    def personalize(self, theta: np.ndarray) -> dict[str, float]:
        return {"loss": 0.1}

    def save_shared_adapter(self, theta: np.ndarray, folder: Path, key: str) -> None:
        pass

    def validate(self, theta: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(rows={}, videos=())


@pytest.fixture
def site(tmp_path: Path) -> FLContext:
    (tmp_path / "site-1" / "local").mkdir(parents=True)
    (tmp_path / "site-1" / "startup").mkdir()
    (tmp_path / "site-1" / "local" / "privfedtalk.yaml").write_text(f"state: {tmp_path / 'state'}\n", encoding="utf-8")
    return FLContextManager(engine=_Engine(), identity_name="site-1", job_id="job-1", private_stickers={
        FLContextKey.SIMULATE_MODE: True,
        FLContextKey.WORKSPACE_OBJECT: Workspace(str(tmp_path / "site-1"), "site-1")}).new_context()


def with_settings(**changes: object) -> PrivFedTalkExecutor:
    settings = {"data": DataSettings(source="synthetic", people=2, clips=2, seconds=1.0), "training": BRIEF,
                "adapter": AdapterSettings(), "personalize": BRIEF, "reliability": ReliabilitySettings(),
                "privacy": PrivacySettings(), "rounds": RoundSettings(), "backbone": BackboneSettings()}
    return PrivFedTalkExecutor(**{name: plain(value) for name, value in {**settings, **changes}.items()})


@pytest.fixture
def executor(untrained: Path) -> Executor:
    return lambda **changes: with_settings(**{"adapter": AdapterSettings(backbone=str(untrained)), **changes})


def idle(site: FLContext, **changes: object) -> PrivFedTalkExecutor:
    """An executor on made-up work."""
    made = with_settings(**changes)
    made._work, made._place = _Work(), place_of(site)
    return made


def task(theta: np.ndarray | None = None, log: StepLog | None = None, **meta: object) -> Shareable:
    header = {p.JOB: "job-1", p.ROUND: 1, p.NONCE: "n", p.SPEC: "", p.BACKBONE: "", p.KEY_ID: ""}
    about = {p.ZERO: theta is None, **(log or StepLog()).told(),
             p.AGREED: {"privacy": plain(PrivacySettings()), "reliability": plain(ReliabilitySettings())}}
    data = {} if theta is None else {p.PLAIN: theta}
    return DXO(DataKind.WEIGHTS, data=data, meta={**header, **about, **meta}).to_shareable()


def status(reply: Shareable) -> str:
    return from_shareable(reply).meta[p.STATUS]


def test_a_task_that_does_not_agree_is_refused_and_the_log_says_in_what(
        executor: Executor, site: FLContext, caplog: pytest.LogCaptureFixture) -> None:
    work = executor()
    other = {"privacy": plain(PrivacySettings(noise_multiplier=9.0, clip_norm=0.5))}
    for change, said in [({p.SPEC: "0" * 64}, "header spec"), ({p.BACKBONE: "other"}, "header backbone"),
                         ({p.JOB: "job-2"}, "header job"), ({p.AGREED: other}, "in clip_norm, noise_multiplier")]:
        reply = work.execute(p.TASK_ADAPTER, task(**change), site, Signal())
        assert reply.get_return_code() == ReturnCode.BAD_TASK_DATA and status(reply) == p.STATUS_WRONG_HEADER
        assert said in caplog.text


def test_a_step_that_is_too_long_is_refused_and_the_site_waits_for_its_operator(
        executor: Executor, site: FLContext, tmp_path: Path) -> None:
    work, log = executor(), StepLog()
    work.execute(p.TASK_ADAPTER, task(**{p.JOB: "other"}), site, Signal())  # opens the work, and no more
    log.took(1.0, 0.01)
    far = np.full(work._work.spec.size, 0.1, np.float32)
    assert status(work.execute(p.TASK_ADAPTER, task(far, log, **{p.ROUND: 2}), site, Signal())) == p.STATUS_STEP_REFUSED
    assert status(work.execute(p.TASK_VALIDATE, task(), site, Signal())) == p.STATUS_STOPPED
    assert "clipped and noised updates reach" in (tmp_path / "state" / STOPPED).read_text(encoding="utf-8")


def test_a_missing_asset_says_which_command_makes_it(
        executor: Executor, site: FLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("privfedtalk_flare.generator.pipeline.ASSETS", tmp_path / "assets")
    reply = executor(adapter=AdapterSettings()).execute(p.TASK_ADAPTER, task(), site, Signal())
    assert status(reply) == p.STATUS_MISSING_ASSET
    assert "nvflare simulator jobs/backbone" in caplog.text and "privfedtalk backbone import" in caplog.text


def test_a_site_refuses_settings_that_break_the_promise_whoever_built_the_job(executor: Executor) -> None:
    with pytest.raises(SettingsError, match=r"adapter\.train 'both' does not go with privacy\.mechanism 'gaussian'"):
        executor(adapter=AdapterSettings(train="both"))
    with pytest.raises(SettingsError, match=r"privacy\.noise 'distributed' does not go with reliability\.mode"):
        executor(privacy=PrivacySettings(noise="distributed"))


def test_a_job_without_held_out_clips_cannot_score(executor: Executor, site: FLContext,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    data = DataSettings(source="synthetic", people=2, clips=2, seconds=1.0, held_out=0)
    assert status(executor(data=data).execute(p.TASK_ADAPTER, task(), site, Signal())) == p.STATUS_FAILED
    assert "need a held-out clip" in caplog.text


# What leaves

def test_a_signal_to_noise_ratio_leaves_with_three_digits_and_times_as_whole_seconds(site: FLContext) -> None:
    work, log = idle(site), StepLog()
    assert p.SNR not in from_shareable(work.execute(p.TASK_ADAPTER, task(log=log), site, Signal())).meta
    log.carried.append("n")
    log.took(1.0, 0.001)
    theta = np.full(_Work.spec.size, 0.00101, np.float32)
    meta = from_shareable(work.execute(p.TASK_ADAPTER, task(theta, log), site, Signal())).meta
    assert meta[p.SNR] == site.get_engine().scalars["snr"] == 0.142  # sqrt(.0201)
    assert meta[p.BUSY] and all(isinstance(second, int) for pair in meta[p.BUSY] for second in pair)


def test_losses_and_times_of_training_are_noted_at_the_site_alone(site: FLContext) -> None:
    work = idle(site)
    for event in (EventType.BEFORE_TASK_DATA_FILTER, EventType.AFTER_TASK_DATA_FILTER):
        work.handle_event(event, site)
    reply = from_shareable(work.execute(p.TASK_ADAPTER, task(), site, Signal()))
    for event in (EventType.BEFORE_TASK_RESULT_FILTER, EventType.AFTER_TASK_RESULT_FILTER):
        work.handle_event(event, site)
    notes = {one["part"]: one for one in read_notes(place_of(site).output)}
    assert set(notes) == {"receive", "adapter", "protect"} and all(one["seconds"] >= 0 for one in notes.values())
    assert notes["adapter"]["loss"] == 0.5 and notes["adapter"]["round"] == 1
    assert "loss" not in str(reply.meta) and not any("loss" in tag for tag in site.get_engine().scalars)


@pytest.mark.parametrize(("busy", "shown"), [
    ([], []), ([[4.2, 4.7]], [[4, 5]]), ([[1.5, 2.5], [2.5, 3.1], [2.0, 2.1]], [[1, 4]]),
    ([[9.5, 9.6], [1.1, 1.9], [2.3, 2.4]], [[1, 3], [9, 10]]), ([[1.0, 8.0], [2.0, 3.0]], [[1, 8]]),
    ([[5.9, 3.0]], [[5, 6]])])
def test_busy_times_leave_as_their_union(busy: list, shown: list) -> None:
    assert _united(busy) == shown


@pytest.mark.parametrize("mode", ["metadata", "sealed", "uniform"])
def test_the_executor_tracks_no_score_where_nothing_protects_it(site: FLContext, mode: str) -> None:
    work = idle(site, privacy=PrivacySettings(mechanism="off"), reliability=ReliabilitySettings(mode=mode))
    work.execute(p.TASK_ADAPTER, task(**{p.AGREED: {}}), site, Signal())
    assert set(site.get_engine().scalars) == {"identities", "seconds/training"}


@pytest.mark.parametrize("name", [p.TASK_ADAPTER, p.TASK_PERSONALIZE, p.TASK_VALIDATE])
def test_a_task_is_checked_once_by_whoever_sees_it_first(
        site: FLContext, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    monkeypatch.setattr(steps, "check_step", lambda *_, **__: checked.append("step"))
    monkeypatch.setattr(steps, "plain", lambda settings: checked.append("settings") or plain(settings))
    (tmp_path / "site-1" / "local" / "privfedtalk.yaml").write_text(
        f"state: {tmp_path / 'state'}\nrequire_encryption: false\n", encoding="utf-8")
    site.set_prop(FLContextKey.TASK_NAME, name, private=True, sticky=False)
    data, once = task(np.zeros(_Work.spec.size, np.float32)), ["settings", "settings", "step"]
    if name == p.TASK_ADAPTER:  # personalize and validate have no such filter in the shipped job
        data = ReserveRelease({}, {}).process(data, site)
        assert checked == once
    assert idle(site).execute(name, data, site, Signal()).get_return_code() == ReturnCode.OK
    assert checked == once


def test_a_task_that_does_not_say_how_far_theta_moved_is_refused_whatever_filters_there_are(
        site: FLContext, caplog: pytest.LogCaptureFixture) -> None:
    reply = idle(site).execute(p.TASK_ADAPTER, task(**{p.MOVED: None}), site, Signal())
    assert status(reply) == p.STATUS_WRONG_HEADER and "does not say how far theta has moved" in caplog.text
