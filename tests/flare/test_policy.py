"""A site's own privacy.json against jobs that would do otherwise: FLARE's own client runner, filters and events."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.fed.client.client_engine_executor_spec import TaskAssignment
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig, TaskRouter
from sites import JOB, SITE, context
from strategies import SECRET

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor
from privfedtalk_flare.flare.filters import DecryptAdapter, EgressFilter, EncryptUpdate, PrivacyFilter, ReserveRelease
from privfedtalk_flare.flare.policy import SitePolicy
from privfedtalk_flare.flare.site import place_of
from privfedtalk_flare.flare.steps import StepLog
from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.training.lane import IdentityUpdate

PRIVACY_JSON = Path(__file__).parents[2] / "poc" / "privacy.json"
HEADER = {p.JOB: JOB, p.ROUND: 1, p.NONCE: "ab12", p.SPEC: "", p.BACKBONE: "", p.KEY_ID: ""}
SIZE = 400


class Work:
    """Two people of whom nothing is trained: the methods of `SiteWork` that the executor calls."""

    spec, backbone_digest = SimpleNamespace(size=SIZE, digest="0" * 64), "1" * 64
    adapters, rounds = (), 0

    def prepare(self) -> int:
        return 2

    def adapter_round(self, theta: np.ndarray, number: int) -> list[IdentityUpdate]:
        self.rounds += 1
        return [IdentityUpdate(theta + 0.01, 0.5, 1) for _ in range(2)]


class Engine:
    """As much of a client's job process as its runner asks for: handlers in FLARE's order, and contexts."""

    def __init__(self) -> None:
        self.handlers: list[FLComponent] = []

    def register_aux_message_handler(self, topic: str, message_handle_func: Any) -> None:
        pass

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        fire_event_to_components(event_type, self.handlers, fl_ctx)


class Sends(Filter):
    """A job's own filter: sends `data` in clear, whatever came before it."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__()
        self.data = data

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        return DXO(DataKind.WEIGHTS, data=self.data, meta={SECRET: 1}).to_shareable()


class Adds(FLComponent):
    """A job's own component: puts its secret beside the finished result, and into what FLARE sends back unseen."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.AFTER_TASK_RESULT_FILTER:
            fl_ctx.get_prop(FLContextKey.TASK_RESULT).set_header("aside", SECRET)
        elif event_type == EventType.BEFORE_TASK_EXECUTION:
            fl_ctx.get_prop(FLContextKey.TASK_DATA).add_cookie("aside", SECRET)


class Foreign(Executor):
    """An executor of the job's own, which hands raw weights to no filter at all."""

    ran = 0

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        self.ran += 1
        return DXO(DataKind.WEIGHTS, data={"w": np.ones(3)}, meta={}).to_shareable()


class Job:
    """A job at a site: its chains as `PrivFedTalkRecipe` builds them, to be spoilt, and the site's privacy.json."""

    def __init__(self, root: Path, *, task: str = p.TASK_ADAPTER, privacy: dict[str, Any] | None = None,
                 executor: Executor | None = None, component: FLComponent | None = None, policy: bool = True,
                 rules: dict[str, Any] | None = None, **site: Any) -> None:
        settings, self.task, self.work = (privacy or {}, {}), task, Work()
        self.engine = Engine()
        self.ctx = context(root, engine=self.engine, task=task, **site)
        self.executor = executor or self._ours(settings[0])
        self.data = [DecryptAdapter({}), ReserveRelease(*settings)]
        self.result = [PrivacyFilter(*settings), EncryptUpdate({}), EgressFilter({})]
        self.component, self.site = component or FLComponent(), []
        if policy:
            shutil.copy(PRIVACY_JSON, root / SITE / "local" / "privacy.json")
            manager = create_privacy_manager(Workspace(str(root / SITE), SITE), names_only=False)
            assert manager.is_policy_defined() and manager.get_scope("").name == "privfedtalk"
            self.site = [SitePolicy(rules)] if rules else list(manager.components.values())

    def _ours(self, privacy: dict[str, Any]) -> PrivFedTalkExecutor:
        made = PrivFedTalkExecutor(data={}, adapter={}, training={}, personalize={}, reliability={}, privacy=privacy,
                                   rounds={}, backbone={})
        made._work, made._place = self.work, place_of(self.ctx)
        return made

    def run(self, data: dict[str, Any] | None = None, **meta: Any) -> Shareable:
        """One task through FLARE's runner; what it would send."""
        router = TaskRouter()
        router.add_executor([self.task], self.executor)
        config = ClientRunnerConfig(router, {self.task + FilterKey.DELIMITER + FilterKey.IN: self.data},
                                    {self.task + FilterKey.DELIMITER + FilterKey.OUT: self.result})
        self.engine.handlers = [self.executor, *self.data, *self.result, self.component, *self.site]
        runner = ClientRunner({}, config, JOB, self.engine)
        self.ctx.set_prop(FLContextKey.RUNNER, runner, private=True, sticky=True)
        peer = FLContext()
        peer.put("__run_num__", JOB, private=False, sticky=True)
        self.ctx.set_peer_context(peer)
        task = DXO(DataKind.WEIGHTS, data=data or {}, meta={**HEADER, p.ZERO: not data, **StepLog().told(), **meta})
        return runner._process_task(TaskAssignment(self.task, "task-1", task.to_shareable()), self.ctx)

    @property
    def booked(self) -> int:
        ledger = place_of(self.ctx).state / "ledger.jsonl"
        return len(ledger.read_text(encoding="utf-8").splitlines()) if ledger.exists() else 0


def refused(reply: Shareable) -> bool:
    """Whether nothing left but a status word and the header. Fails where a result lost its content, but not all."""
    if reply.get_return_code() == ReturnCode.OK:
        return False
    assert SECRET not in str(reply)
    if "DXO" in reply:  # not where a filter of the job's had blocked it already
        content = from_shareable(reply)
        assert content.data == {} and set(content.meta) <= {*p.HEADER, p.BUSY, p.STATUS}
    return True


def test_a_job_within_the_rules_goes_through(tmp_path: Path) -> None:
    job = Job(tmp_path)
    sent = job.run()
    assert not refused(sent)
    content = from_shareable(sent)
    assert content.data.keys() == {"chunk_0000"} and content.meta[p.NONCE] == "ab12"
    assert job.work.rounds == job.booked == 1


@pytest.mark.parametrize(("privacy", "said"), [
    ({"mechanism": "off"}, "mechanism 'off'; it must be 'gaussian'"),
    ({"noise_multiplier": 0.5}, "privacy.noise_multiplier 0.5 is below what the noise_multiplier 1 of this site's")])
def test_less_noise_than_the_site_demands_is_refused_before_anything_trains_or_is_booked(
        tmp_path: Path, caplog: pytest.LogCaptureFixture, privacy: dict[str, Any], said: str) -> None:
    job = Job(tmp_path, privacy=privacy)
    assert refused(job.run())
    assert said in caplog.text
    assert job.work.rounds == job.booked == 0
    assert {r.levelname for r in caplog.records if r.name.startswith("privfedtalk_flare")} <= {"WARNING", "INFO"}
    free = Job(tmp_path / "free", privacy=privacy, policy=False)
    assert not refused(free.run()), "without the site's own rules the job decides: this is what they are for"


def test_a_clip_bit_with_less_noise_than_the_site_demands_is_refused(tmp_path: Path,
                                                                     caplog: pytest.LogCaptureFixture) -> None:
    """It has half a sensitivity, so half of sigma is as much."""
    for sigma, fits in ((0.4, False), (0.5, True)):
        caplog.clear()
        Job(tmp_path / str(sigma), privacy={"clip_quantile": 0.5, "clip_bit_noise_multiplier": sigma}).run()
        assert (f"privacy.clip_bit_noise_multiplier {sigma:g} is below what" in caplog.text) != fits


def test_more_noise_than_the_site_demands_goes_through(tmp_path: Path) -> None:
    assert not refused(Job(tmp_path, privacy={"noise_multiplier": 4.0}).run())


@pytest.mark.parametrize("spoil", [
    lambda job: job.result.clear(), lambda job: job.result.pop(0), lambda job: job.result.pop(),
    lambda job: job.result.insert(1, Sends({p.PLAIN: np.ones(SIZE, np.float32)})),
    lambda job: job.result.append(Sends({"w": np.ones(3)})), lambda job: job.data.pop(), lambda job: job.data.clear(),
    lambda job: job.result.__setitem__(0, type("PrivacyFilter", (PrivacyFilter,), {})({}, {}))])
def test_a_round_whose_chain_is_not_the_packages_own_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                                                spoil: Any) -> None:
    job = Job(tmp_path)
    spoil(job)
    assert refused(job.run())
    assert "privacy.json says require_dp, and its" in caplog.text and job.work.rounds == job.booked == 0


def test_an_executor_of_the_jobs_own_is_refused_and_what_it_hands_over_stays(tmp_path: Path,
                                                                            caplog: pytest.LogCaptureFixture) -> None:
    job = Job(tmp_path, executor=Foreign())
    job.data, job.result = [], []
    assert refused(job.run())
    assert "the executor of 'adapter' is Foreign" in caplog.text


@pytest.mark.parametrize("task", [p.TASK_PERSONALIZE, p.TASK_VALIDATE, "train"])
def test_raw_weights_leave_in_no_task_whatever_filters_the_job_has(tmp_path: Path, task: str,
                                                                  caplog: pytest.LogCaptureFixture) -> None:
    job = Job(tmp_path, task=task, executor=Foreign())
    job.data, job.result = [], []
    assert refused(job.run())
    assert "by this site's own rules" in caplog.text


def test_backbone_weights_leave_only_where_the_rules_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Backbone(Foreign):
        def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
            meta = {**HEADER, p.PHASE: "codec", p.COUNT: 1, p.LOSS: 0.5}
            return DXO(DataKind.WEIGHTS, data={"codec/w": np.ones(3, np.float32)}, meta=meta).to_shareable()

    allowed = {"require_dp": False}
    for rules, booked, held in ((None, True, True), (allowed, True, False), (allowed, False, True)):
        job = Job(tmp_path / f"{bool(rules)}{booked}", task=p.TASK_BACKBONE, executor=Backbone(), rules=rules)
        job.data, job.result = job.data[1:] if booked else [], [EgressFilter({})]
        assert refused(job.run()) is held
    assert "backbone weights carry no guarantee" in caplog.text
    assert "the ledger holds no release for it" in caplog.text  # else the next job would tell too small an epsilon


def test_a_site_that_requires_no_encryption_lets_a_plain_update_leave_and_not_after_it_was_charged_for_nothing(
        tmp_path: Path) -> None:
    job = Job(tmp_path, yaml="require_encryption: false\n")
    job.data, job.result = job.data[1:], [job.result[0], EgressFilter({"scheme": "off"})]
    assert set(from_shareable(job.run()).data) == {p.PLAIN}


def test_without_require_dp_a_round_without_noise_leaves_encrypted_only(tmp_path: Path) -> None:
    rules = {"require_dp": False}
    assert not refused(Job(tmp_path, privacy={"mechanism": "off"}, rules=rules).run())
    bare = Job(tmp_path / "bare", privacy={"mechanism": "off"}, rules=rules)
    bare.result = bare.result[:1]  # neither encrypted nor filtered
    assert refused(bare.run())


def test_what_a_jobs_component_adds_to_a_finished_result_does_not_leave(tmp_path: Path) -> None:
    for policy in (True, False):
        sent = Job(tmp_path / str(policy), component=Adds(), policy=policy).run()
        assert (SECRET in str(sent)) is not policy  # without the rules it does: this is what they are for


def test_a_result_must_echo_the_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Other(Foreign):
        def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
            meta = {**HEADER, p.NONCE: "Ann-Lee", p.IDENTITIES: 2}
            return DXO(DataKind.METRICS, data={p.METRICS: {"loss": 0.5}}, meta=meta).to_shareable()

    job = Job(tmp_path, task=p.TASK_PERSONALIZE, executor=Other())
    job.data, job.result = [], []
    reply = job.run()
    assert refused(reply) and from_shareable(reply).meta[p.NONCE] == "ab12"
    assert "the result's nonce 'Ann-Lee' is not the task's 'ab12'" in caplog.text


def test_a_site_that_streams_its_logs_is_refused_by_its_own_rules(tmp_path: Path,
                                                                 caplog: pytest.LogCaptureFixture) -> None:
    job = Job(tmp_path, resources={"allow_log_streaming": False})
    (tmp_path / SITE / "local" / "resources.json").write_text('{"allow_log_streaming": true}', encoding="utf-8")
    assert refused(job.run())
    assert "allow_log_streaming in local/resources.json is true" in caplog.text and job.work.rounds == 0


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="rules: unknown setting 'sigma'; the choices are require_dp"):
        SitePolicy({"sigma": 1.0})
