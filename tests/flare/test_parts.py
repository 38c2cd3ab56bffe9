"""The small parts of flare/: what they refuse, and what they keep to themselves."""

from __future__ import annotations

import copy
import json
import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nvflare.apis.client import Client
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel

from privfedtalk_flare.evaluation.summary import Round
from privfedtalk_flare.federation.averaging import AveragingError
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare import tracking
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.backbone import average_replies
from privfedtalk_flare.flare.controller import PrivFedTalkController
from privfedtalk_flare.flare.executor import PrivFedTalkExecutor
from privfedtalk_flare.flare.failures import HeaderError, answer_to
from privfedtalk_flare.flare.lines import round_line, round_words
from privfedtalk_flare.flare.record import RunRecord, save_round, worst_epsilon
from privfedtalk_flare.flare.scalars import fault_of
from privfedtalk_flare.flare.sections import plain, section, with_sections
from privfedtalk_flare.flare.site import threads_of
from privfedtalk_flare.flare.steps import STOPPED, StepLog, Stopped, check, follow, refuse_if_stopped
from privfedtalk_flare.privacy.ledger import BudgetExceeded, LedgerError, NoLedger
from privfedtalk_flare.privacy.step import StepRefused
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
    TrainingSettings,
)
from privfedtalk_flare.training.place import SitePlace

EXECUTOR = {"data": plain(DataSettings()), "adapter": plain(AdapterSettings()), "training": plain(TrainingSettings()),
            "personalize": plain(TrainingSettings()), "reliability": plain(ReliabilitySettings()),
            "privacy": plain(PrivacySettings()), "rounds": plain(RoundSettings()),
            "backbone": plain(BackboneSettings())}
CONTROLLER = {"rounds": plain(RoundSettings()), "reliability": plain(ReliabilitySettings()),
              "privacy": plain(PrivacySettings()), "backbone": plain(BackboneSettings())}


# Executor

def task(**meta: object) -> Shareable:
    header = {p.JOB: "job", p.ROUND: 1, p.NONCE: "n", p.SPEC: "", p.BACKBONE: "", p.KEY_ID: ""}
    return DXO(DataKind.WEIGHTS, data={}, meta={**header, **meta}).to_shareable()


def test_a_task_that_a_filter_declined_is_answered_without_work() -> None:
    reply = PrivFedTalkExecutor(**EXECUTOR).execute(
        p.TASK_ADAPTER, task(**{p.STATUS: p.STATUS_BUDGET_SPENT}), FLContext(), Signal())
    assert reply.get_return_code() != ReturnCode.OK
    meta = from_shareable(reply).meta
    assert meta[p.STATUS] == p.STATUS_BUDGET_SPENT and meta[p.NONCE] == "n"


def test_an_unknown_task_is_answered_and_the_log_lists_the_choices(caplog: pytest.LogCaptureFixture) -> None:
    reply = PrivFedTalkExecutor(**EXECUTOR).execute("train", task(), FLContext(), Signal())
    assert reply.get_return_code() == ReturnCode.BAD_TASK_DATA
    assert from_shareable(reply).meta[p.STATUS] == p.STATUS_WRONG_HEADER
    assert "'train' is unknown; the choices are backbone, adapter, personalize, validate" in caplog.text


@pytest.mark.parametrize(("section_name", "change", "said"), [
    ("training", {"momentum": 0.9}, "training: unknown setting 'momentum'; the choices are steps, batch"),
    ("data", {"source": "web"}, "data.source: got 'web'; the choices are site, synthetic"),
    ("privacy", {"noise_multiplier": -1.0}, "privacy.noise_multiplier: must be at least")])
def test_the_executor_refuses_settings_it_does_not_know(section_name: str, change: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        PrivFedTalkExecutor(**{**EXECUTOR, section_name: {**EXECUTOR[section_name], **change}})


@pytest.mark.parametrize(("error", "status"), [
    (MemoryError(), p.STATUS_OUT_OF_MEMORY), (HeaderError("x"), p.STATUS_WRONG_HEADER),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), p.STATUS_OUT_OF_MEMORY),
    (FileNotFoundError("x"), p.STATUS_MISSING_ASSET), (RuntimeError("x"), p.STATUS_FAILED),
    (ValueError("x"), p.STATUS_FAILED)])
def test_errors_are_answered_by_a_word(error: Exception, status: str) -> None:
    rc, word = answer_to(error)
    assert rc != ReturnCode.OK and word == status


def test_a_ledger_that_is_missing_and_one_that_is_not_trusted_are_told_apart() -> None:
    assert answer_to(NoLedger("x"))[1] == p.STATUS_NO_LEDGER
    assert answer_to(LedgerError("x"))[1] == p.STATUS_LEDGER
    assert answer_to(BudgetExceeded("x"))[1] == p.STATUS_BUDGET_SPENT
    assert {p.STATUS_NO_LEDGER, p.STATUS_LEDGER} <= set(p.STATUSES)


def test_torch_out_of_memory_is_known() -> None:
    import torch

    assert answer_to(torch.OutOfMemoryError("x"))[1] == p.STATUS_OUT_OF_MEMORY


def test_no_clips_and_bad_clips_are_known() -> None:
    from privfedtalk_flare.data.clips import ClipError
    from privfedtalk_flare.training.corpus import NoClipsError

    assert answer_to(NoClipsError("x")) == (ReturnCode.EMPTY_RESULT, p.STATUS_NO_CLIPS)
    assert answer_to(ClipError("x"))[1] == p.STATUS_DATA_ERROR


# Controller

def test_a_late_reply_is_refused_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    controller = PrivFedTalkController(**CONTROLLER)
    controller.process_result_of_unknown_task(Client("site-4", ""), p.TASK_ADAPTER, "id", Shareable(), FLContext())
    assert controller._record.notes == ["site-4 refused: its reply to adapter came too late"]


def test_a_reply_with_an_error_code_is_noted_by_its_status_only() -> None:
    controller = PrivFedTalkController(**CONTROLLER)
    reply = DXO(DataKind.METRICS, data={}, meta={p.STATUS: "alice has no clips"}).to_shareable()
    reply.set_return_code(ReturnCode.EMPTY_RESULT)
    assert not controller._accept_train_result("site-1", reply, FLContext())
    assert controller._record.notes == ["site-1 refused: return code EMPTY_RESULT"]


@pytest.mark.parametrize(("told", "said"), [
    ({p.NONCE: "old"}, "nonce is 'old', not 'n'"), ({p.EPSILON: [1.0]}, "epsilon"), ({p.EPSILON: {"a": 1}}, "epsilon"),
    ({p.EPSILON: {"server": 10**400}}, "epsilon"), ({p.SNR: math.inf}, "snr 'inf'"), ({p.SNR: "1"}, "snr"),
    ({p.LEDGER: {"id": "0" * 32, "count": -1, "head": "0" * 64}}, "ledger"), ({p.LEDGER: 3}, "ledger"),
    ({p.ADAPTERS: 5}, "adapters"), ({p.ADAPTERS: ["../../etc"]}, "adapters"), ({p.VIDEOS: {"a": 1}}, "videos")])
def test_a_reply_that_could_break_the_server_does_not_count(told: dict, said: str) -> None:
    asked = {p.JOB: "job", p.ROUND: 1, p.NONCE: "n", p.SPEC: "", p.BACKBONE: "", p.KEY_ID: ""}
    assert fault_of(asked, asked) == ""
    assert fault_of({**asked, p.SPEC: "0" * 64, p.SNR: 0.1, p.ADAPTERS: ["identities/a/b.safetensors"]}, asked) == ""
    assert said in fault_of({**asked, **told}, asked)


@pytest.mark.parametrize(("rounds", "said"), [
    ({"eta": 0.5}, r"rounds\.eta is 0\.5, but component 'aggregator', which sums the updates, has eta 1\.0"),
    ({"min_sites": 3}, r"rounds\.min_sites is 3, but .* has min_sites 1; write \"rounds\": \"{rounds}\" among its")])
def test_a_sum_with_other_settings_than_the_controllers_is_refused(
        rounds: dict, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = PrivFedTalkController(**{**CONTROLLER, "rounds": plain(RoundSettings(**rounds))})
    monkeypatch.setattr(controller, "get_component", lambda _: ISFAAggregator())
    with pytest.raises(SettingsError, match=said):
        controller.run()
    controller._aggregator = ISFAAggregator(rounds=rounds)
    controller._check_aggregator()


# Steps

SIZE, STEPS = 400, PrivacySettings(noise_multiplier=1.0, clip_norm=0.1)
TWENTY = RoundSettings(rounds=20)


def at(folder: Path) -> SitePlace:
    return SitePlace("site-1", None, folder / "state", folder / "run")


def seen(folder: Path, theta: np.ndarray, log: StepLog, nonce: str, privacy: PrivacySettings = STEPS) -> float | None:
    """A broadcast of theta, one round after each step, as a site at `folder` takes it."""
    meta = {p.NONCE: nonce, p.ROUND: 1 + log.steps, **log.told()}
    log.carried.append(nonce)
    check(theta, meta, at(folder), privacy, TWENTY)
    return follow(theta, meta, at(folder), privacy)


class Log(StepLog):
    """A server's step log that counts its steps."""

    steps = 0

    def took(self, eta: float, noise: float) -> None:
        super().took(eta, noise)
        self.steps += 1


def noisy(log: StepLog, theta: np.ndarray, eta: float = 1.0, std: float = 0.02, signal: float = 0.0) -> np.ndarray:
    log.took(eta, std)
    rng = np.random.default_rng(int(log.reach * 10))
    return (theta + eta * (rng.normal(size=SIZE) * std + signal)).astype(np.float32)


def test_snr_needs_the_step_before_and_survives_a_restart(tmp_path: Path) -> None:
    log, theta = Log(), np.zeros(SIZE, np.float32)
    assert seen(tmp_path, theta, log, "a") is None
    log.took(1.0, 0.01)
    theta = theta + np.float32(0.011)
    assert seen(tmp_path, theta, log, "b") == pytest.approx(math.sqrt(0.21), rel=1e-4)  # |s|^2 = 1.21 D s^2
    assert seen(tmp_path, theta, log, "c") is None  # the same theta once more: no step
    missed = noisy(log, noisy(log, theta))
    assert seen(tmp_path, missed, log, "d") is None


def test_honest_steps_pass_the_norm_check_also_after_missed_rounds_and_when_one_is_taken_back(tmp_path: Path) -> None:
    log, theta = Log(), np.zeros(SIZE, np.float32)
    for number in range(6):
        if number not in (2, 3):  # a site that was away, and a new one, see theta only now
            seen(tmp_path, theta, log, str(number))
        seen(tmp_path / f"new-{number}", theta, log, str(number))
        before, was = theta, copy.copy(log)
        theta = noisy(log, theta, eta=0.5, signal=0.1 / math.sqrt(SIZE))
    seen(tmp_path, theta, log, "last")
    seen(tmp_path, before, was, "back")
    refuse_if_stopped(tmp_path / "state")


@pytest.mark.parametrize("change", [
    lambda theta: theta * 3, lambda theta: theta + 0.04, lambda theta: theta + 0.7 * (np.arange(SIZE) == 7),
    lambda theta: theta + 8.0])
def test_a_step_longer_than_clipped_updates_make_stops_the_site(tmp_path: Path, change: object) -> None:
    log, theta = Log(), np.zeros(SIZE, np.float32)
    seen(tmp_path, theta, log, "a")
    theta = noisy(log, theta)
    with pytest.raises(StepRefused, match=r"clipped and noised updates reach 0\.6"):
        seen(tmp_path, change(theta).astype(np.float32), log, "b")
    with pytest.raises(Stopped, match="remove it to take part again"):
        refuse_if_stopped(tmp_path / "state")
    (tmp_path / "state" / STOPPED).unlink()
    refuse_if_stopped(tmp_path / "state")
    assert seen(tmp_path, theta, log, "c") is not None  # what was refused is not remembered


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_theta_that_is_not_finite_stops_the_site(tmp_path: Path, value: float) -> None:
    with pytest.raises(StepRefused, match="not finite"):
        seen(tmp_path, np.full(SIZE, value, np.float32), Log(), "a")


def test_the_server_cannot_widen_the_norm_check_beyond_the_sites_own_noise(tmp_path: Path) -> None:
    log = Log()
    log.took(1.0, 50.0)
    with pytest.raises(StepRefused, match=r"reach 2\.7"):  # C (1 + sigma (sqrt(400) + 6))
        seen(tmp_path, np.full(SIZE, 0.2, np.float32), log, "a")
    with pytest.raises(HeaderError, match="does not say how far"):
        check(np.zeros(SIZE, np.float32), {p.NONCE: "a"}, at(tmp_path), STEPS, TWENTY)


@pytest.mark.parametrize(("meta", "error", "said"), [
    ({p.MOVED: [1e6, 1e9]}, StepRefused, r"moved by 1e\+06 of eta since round 1; 1 rounds .* make 1 at most"),
    ({p.MOVED: [3.0, 0.01], p.ROUND: 3}, StepRefused, "2 rounds at this site's rounds.eta 1 make 2 at most"),
    ({p.MOVED: [90.0, 0.01], p.ROUND: 91}, HeaderError, "header round: 91, but this site's rounds.rounds is 20"),
    ({p.MOVED: [90.0, 0.01], p.ROUND: -91}, HeaderError, "header round: -91")])
def test_the_server_cannot_widen_the_norm_check_by_a_step_or_rounds_that_the_job_has_not(
        tmp_path: Path, meta: dict[str, object], error: type[Exception], said: str) -> None:
    told = {p.NONCE: "a", p.ROUND: 2, **meta}
    with pytest.raises(error, match=said):
        check(np.full(SIZE, 0.2, np.float32), told, at(tmp_path), STEPS, TWENTY)


def test_a_theta_that_is_said_to_be_zero_is_checked_as_well(tmp_path: Path) -> None:
    log, zero = Log(), np.zeros(SIZE, np.float32)
    check(None, {p.ROUND: 1, **log.told()}, at(tmp_path), STEPS, TWENTY)
    seen(tmp_path, zero, log, "a")
    seen(tmp_path, noisy(log, zero), log, "b")
    check(None, {p.ROUND: 2, **StepLog().told()}, at(tmp_path), STEPS, TWENTY)  # the step was taken back
    with pytest.raises(StepRefused):
        check(None, {p.ROUND: 2, **log.told()}, at(tmp_path), STEPS, TWENTY)


def test_without_noise_there_is_no_bound(tmp_path: Path) -> None:
    off, log = PrivacySettings(mechanism="off"), Log()
    assert seen(tmp_path, np.full(SIZE, 9.0, np.float32), log, "a", off) is None


# Threads

@pytest.mark.parametrize(("at_once", "own", "threads"), [(2, None, 4), (1, None, 8), (16, None, 1), (2, 3, 3)])
def test_simulated_clients_share_the_cores_unless_the_site_says_otherwise(
        at_once: int, own: int | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    fl_ctx = FLContext()
    fl_ctx.set_prop(FLContextKey.SIMULATE_MODE, True, private=True, sticky=False)
    fl_ctx.set_prop(FLContextKey.ARGS, Namespace(threads=at_once), private=True, sticky=False)
    place = SitePlace("site-1", None, Path("/state"), Path("/run"), threads=own)
    assert threads_of(place, fl_ctx) == threads
    assert threads_of(place, FLContext()) == (own or 8)  # a site of its own has its machine to itself


# Tracking

class Recorder(FLComponent):
    """Keeps what would be fired."""

    def __init__(self) -> None:
        super().__init__()
        self.fired: list[str] = []

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        self.fired.append(event_type)


@pytest.mark.parametrize("tag", ["loss", "score", "seconds/training", "clip_fraction", "snr/x"])
def test_private_scalars_are_refused_under_dp(tag: str) -> None:
    component = Recorder()
    with pytest.raises(ValueError, match="may not be sent from here; the choices are identities, snr"):
        tracking.send(component, FLContext(), {tag: 1.0}, 1, tracking.SITE_WITH_DP)
    assert not component.fired


@pytest.mark.parametrize("allowed", [tracking.SITE, tracking.SITE_WITH_DP])
def test_an_executor_may_send_no_score_with_or_without_dp(allowed: frozenset[str]) -> None:
    with pytest.raises(ValueError, match="scalar 'score' may not be sent from here"):
        tracking.send(Recorder(), FLContext(), {"score": 0.5}, 1, allowed)


def test_allowed_scalars_are_sent() -> None:
    component = Recorder()
    tracking.send(component, FLContext(), {"snr": 0.1, "identities": 2}, 1, tracking.SITE_WITH_DP)
    tracking.send(component, FLContext(), {"metric/shared/sync": 0.9, "weight/site-1": 0.5}, 1, tracking.SERVER)
    assert component.fired == [tracking.EVENT] * 4
    with pytest.raises(ValueError, match="finite"):
        tracking.send(component, FLContext(), {"snr": math.inf}, 1, tracking.SITE_WITH_DP)


# Record

def test_busy_intervals_are_cut_to_the_run_and_malformed_ones_left_out() -> None:
    record = RunRecord(started=100.0)
    record.worked([[50.0, 150.0], [200.0, 190.0], ["x", 3], [1.0], None, [float("nan"), 1.0]])
    record.worked("busy")
    assert record.intervals == [(100.0, 150.0)]


def test_the_worst_site_speaks_for_epsilon() -> None:
    told = [{"receivers": 3.0, "server": 1.0}, None, {"receivers": 4.0, "server": "unbounded", "other": 9.0}]
    assert worst_epsilon(told) == {"receivers": 4.0, "server": "unbounded", "server_and_site": None}


def test_a_summary_of_nothing_can_be_written(tmp_path: Path) -> None:
    content = json.loads(RunRecord(started=0.0).write(tmp_path).read_text(encoding="utf-8"))
    assert content["rows"] == {} and content["overhead_share"] == 1.0


def test_round_state_is_replaced_whole(tmp_path: Path) -> None:
    for number in (1, 2):
        path = save_round(tmp_path / "rounds" / "job.safetensors", {"chunk_0000": np.arange(5, dtype=np.uint8)},
                          {"round": number})
    assert [file.name for file in (tmp_path / "rounds").iterdir()] == ["job.safetensors"]
    assert path.read_bytes().endswith(bytes(range(5)))


def test_a_sealed_round_shows_no_weight_or_score() -> None:
    entry = Round(round=1, epsilon={"receivers": 6.1}, delta=1e-5, snr=None, seconds={"wall": 3.0},
                  sites={"site-1": {"bytes_up": 4, "bytes_down": 2}})
    line = round_line(entry, 3, ReliabilitySettings(mode="sealed"), None)
    assert line == "round 1/3  site-1 (sealed)  epsilon 6.10 (receivers)  3 s"


def test_epsilon_is_told_by_who_looks_with_what_it_does_not_cover() -> None:
    entry = Round(round=1, epsilon={"receivers": 6.1, "server": 3.0, "server_and_site": 6.1}, delta=1e-5, snr=0.01,
                  seconds={"wall": 3.0}, sites={"site-1": {"weight": 0.5, "score": 0.75}, "site-2": {"weight": 0.2}})
    metadata = ReliabilitySettings()
    assert round_line(entry, 3, metadata, 0.5) == (
        "round 1/3  site-1 weight 0.50 score 0.75 (share cap)  site-2 weight 0.20  epsilon 6.10 (receivers, server "
        "with a site), 3.00 (server) given public metadata  3 s")
    words = round_words(entry, 4, 90_112, PrivacySettings(), metadata, ("adapter", "validate"))
    assert words.startswith("epsilon 6.10 for 4 people: the noise is at least 106 times the signal")
    assert "clip count are published and lie outside this promise" in words and "Metrics leave a site" in words
    assert "published" not in round_words(entry, 4, 90_112, PrivacySettings(), ReliabilitySettings(mode="sealed"),
                                          ("adapter",))
    for unscored in (ReliabilitySettings(release="noised"), ReliabilitySettings(mode="counts")):
        said = round_words(entry, 4, 90_112, PrivacySettings(), unscored, ("adapter",))
        assert "clip count is published" in said and "score" not in said
    unknown = round_words(replace(entry, snr=None), 4, 90_112, PrivacySettings(), metadata, ("adapter", "validate"))
    assert unknown == words  # 4 / sqrt(2 D) at most, whatever an estimate of .01 says
    clear = round_words(replace(entry, snr=0.5), 4, 90_112, PrivacySettings(), metadata, ("adapter",))
    assert clear.startswith("epsilon 6.10 for 4 people: the noise is 2.0 times the signal")
    open_round = Round(1, {"receivers": "unbounded"}, None, None, {}, {})
    assert round_words(open_round, 4, 1, PrivacySettings(), metadata, ("adapter",)).startswith("No epsilon is promised")


# Sections

def test_a_missing_section_is_an_error() -> None:
    with pytest.raises(SettingsError, match="privacy: the job's configuration has no section of this name"):
        section(PrivacySettings, None, "privacy")


def test_sections_replace_equal_arguments_only() -> None:
    config = {"format_version": 2, "executors": [{"executor": {"args": {"privacy": {"a": 1}, "data": {"b": 3}}}}]}
    made = with_sections(config, {"privacy": {"a": 1}, "data": {"b": 2}, "rounds": {}})
    assert made == {"format_version": 2, "privacy": {"a": 1},
                    "executors": [{"executor": {"args": {"privacy": "{privacy}", "data": {"b": 3}}}}]}


# Backbone

def reply(site: str, value: float, count: object, name: str = "w") -> FLModel:
    return FLModel(params={name: np.full(2, value, np.float32)},
                   meta={"client_name": site, p.COUNT: count, p.LOSS: value})


def test_replies_are_averaged_by_count_and_bad_ones_refused() -> None:
    refused: dict[str, str] = {}
    replies = [reply("a", 1.0, 1), reply("b", 4.0, 2), reply("c", math.nan, 1), reply("d", 1.0, 0),
               reply("e", 1.0, 1, "other"), reply("f", 1.0, 1)]
    replies[-1].meta[p.LOSS] = math.nan
    weights, loss = average_replies(replies, 2, refused.__setitem__)
    np.testing.assert_allclose(weights["w"], 3.0)
    assert loss == pytest.approx(3.0)
    assert set(refused) == {"c", "d", "e", "f"}
    assert "not finite" in refused["c"] and "at least 1" in refused["d"] and "other tensors" in refused["e"]


@pytest.mark.parametrize("odd", ["a", "b", "c"])
def test_the_tensors_are_what_most_sites_sent_whoever_comes_first(odd: str) -> None:
    refused: dict[str, str] = {}
    replies = [reply(site, 1.0, 1, "other" if site == odd else "w") for site in ("a", "b", "c")]
    assert set(average_replies(replies, 2, refused.__setitem__)[0]) == {"w"} and set(refused) == {odd}
    with pytest.raises(AveragingError, match="no version has a majority"):
        average_replies([reply("a", 1.0, 1), reply("b", 1.0, 1, "other")], 2, refused.__setitem__)


def test_too_few_good_replies_end_the_phase() -> None:
    with pytest.raises(AveragingError, match="1 good replies, min_sites is 2"):
        average_replies([reply("a", 1.0, 1)], 2, lambda site, reason: None)
