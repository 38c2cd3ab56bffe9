"""The executor on real work: an untrained backbone, two rendered people, a FLARE context on a workspace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from simulation import BRIEF

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor
from privfedtalk_flare.flare.sections import plain
from privfedtalk_flare.flare.steps import STOPPED, StepLog
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    PrivacySettings,
    ReliabilitySettings,
    SettingsError,
)

Executor = Callable[..., PrivFedTalkExecutor]


class _Engine:
    """What an analytics event asks of FLARE's engine."""

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> FLContext:
    (tmp_path / "site-1" / "local").mkdir(parents=True)
    (tmp_path / "site-1" / "startup").mkdir()
    (tmp_path / "site-1" / "local" / "privfedtalk.yaml").write_text(f"state: {tmp_path / 'state'}\n", encoding="utf-8")
    return FLContextManager(engine=_Engine(), identity_name="site-1", job_id="job-1", private_stickers={
        FLContextKey.SIMULATE_MODE: True,
        FLContextKey.WORKSPACE_OBJECT: Workspace(str(tmp_path / "site-1"), "site-1")}).new_context()


@pytest.fixture
def executor(untrained: Path) -> Executor:
    def make(**changes: object) -> PrivFedTalkExecutor:
        settings = {"data": DataSettings(source="synthetic", people=2, clips=2, seconds=1.0), "training": BRIEF,
                    "adapter": AdapterSettings(backbone=str(untrained)), "personalize": BRIEF,
                    "reliability": ReliabilitySettings(), "privacy": PrivacySettings(), "backbone": BackboneSettings()}
        return PrivFedTalkExecutor(**{name: plain(value) for name, value in {**settings, **changes}.items()})
    return make


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
    assert status(work.execute(p.TASK_ADAPTER, task(far, log), site, Signal())) == p.STATUS_STEP_REFUSED
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
