"""The server's shared adapter: kept after each round, taken up by a later job, and refused where it does not fit."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from simulation import BRIEF, simulate

from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.aggregator import ISFAAggregator
from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe
from privfedtalk_flare.flare.record import RunRecord
from privfedtalk_flare.flare.shared import SharedState, cloned_from
from privfedtalk_flare.flare.spool import Spool
from privfedtalk_flare.settings import (
    AdapterSettings,
    DataSettings,
    EncryptionSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
)

SIZE = 500
SITES = ("site-1", "site-2", "site-3")
PLAIN = {"scheme": "off"}
ROUNDS = RoundSettings(rounds=4)
RELIABILITY = ReliabilitySettings()
PRIVACY = PrivacySettings(clip_quantile=0.5)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def header(number: int) -> dict:
    return {p.JOB: "first", p.ROUND: number, p.NONCE: f"{number:032x}", p.SPEC: "0" * 64, p.BACKBONE: "1" * 64,
            p.KEY_ID: ""}


def a_state(privacy: PrivacySettings = PRIVACY, rounds: RoundSettings = ROUNDS) -> SharedState:
    aggregator = ISFAAggregator({}, PLAIN, {"eta": rounds.eta, "min_sites": rounds.min_sites})
    return SharedState(aggregator, RunRecord(0.0), rounds, RELIABILITY, privacy)


def a_round(state: SharedState, number: int, sites: tuple[str, ...] = SITES) -> None:
    """Every site sends a vector of its own; each was told to the sites with theta before."""
    state.carried(header(number)[p.NONCE])
    state._aggregator.begin_round(header(number), sites)
    good = []
    for place, site in enumerate(sites, 1):
        update = np.full(SIZE, 1e-4 * place * number, np.float32)
        reply = FLModel(params_type=ParamsType.FULL, params={p.PLAIN: update}, meta={
            **header(number), p.VALUES: SIZE, p.IDENTITIES: 2, p.SCORE: 0.5, p.COUNT: 4, p.CLIP_BIT: 0.25,
            p.EPSILON: {"receivers": 2.0 * number}, "client_name": site})
        assert state._aggregator.accept_model(reply) == ""
        good.append(reply)
    state.step(number, good, sent=0, began=0.0)


def test_a_later_job_goes_on_where_the_earlier_one_was(tmp_path: Path) -> None:
    whole, first = a_state(), a_state()
    for number in (1, 2, 3):
        a_round(whole, number)
    for number in (1, 2):
        a_round(first, number)
        first.save(tmp_path / "first.safetensors", header(number))
    second = a_state()
    assert second.resume(tmp_path / "first.safetensors") == 2
    np.testing.assert_array_equal(second.theta[p.PLAIN], first.theta[p.PLAIN])
    assert second.settled() == first.settled() and second.settled()[p.SPEC] == "0" * 64
    assert second.told() == first.told()
    a_round(second, 3)
    np.testing.assert_array_equal(second.theta[p.PLAIN], whole.theta[p.PLAIN])
    assert second.clip_norm == whole.clip_norm != PRIVACY.clip_norm
    assert second.told() == whole.told()
    assert [entry.round for entry in second._record.rounds] == [1, 2, 3]
    assert [entry.epsilon["receivers"] for entry in second._record.rounds] == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(("change", "said"), [
    ({"privacy": replace(PRIVACY, noise_multiplier=2.0)}, "privacy.noise_multiplier"),
    ({"privacy": replace(PRIVACY, clip_norm=1.0)}, "privacy.clip_norm"),
    ({"rounds": replace(ROUNDS, eta=0.5)}, "rounds.eta")])
def test_a_job_with_another_mechanism_cannot_go_on(tmp_path: Path, change: dict, said: str) -> None:
    first = a_state()
    a_round(first, 1)
    path = first.save(tmp_path / "first.safetensors", header(1))
    other = a_state(**change)
    with pytest.raises(SettingsError, match=f"ran with other values of {said}, and its adapter can only go on"):
        other.resume(path)
    assert other.theta == {}


def test_a_step_that_sites_refused_is_taken_back_on_disk_as_well(tmp_path: Path) -> None:
    state = a_state()
    a_round(state, 1)
    theta, told, clip_norm = state.theta, state.told(), state.clip_norm
    a_round(state, 2)
    assert state.take_back() and not state.take_back()
    path = state.save(tmp_path / "first.safetensors", header(2))
    later = a_state()
    assert later.resume(path) == 2  # it cost what it cost, and is not done again
    for one in (state, later):
        np.testing.assert_array_equal(one.theta[p.PLAIN], theta[p.PLAIN])
        assert one.told() == told and one.clip_norm == clip_norm
        assert one._record.rounds[1].epsilon["receivers"] == 4.0
        assert one._record.rounds[1].words.startswith("Most sites refused this step: it was taken back.")
    assert not later.take_back()  # whose last step an earlier job took


def test_the_very_first_step_can_be_taken_back(tmp_path: Path) -> None:
    state = a_state()
    a_round(state, 1)
    assert state.take_back() and state.told()[p.ZERO]
    later = a_state()
    assert later.resume(state.save(tmp_path / "first.safetensors", header(1))) == 1
    assert later.told()[p.ZERO] and later.clip_norm == PRIVACY.clip_norm
    a_round(later, 2)
    assert later.theta[p.PLAIN].any()


def test_a_job_with_fewer_rounds_than_are_finished_cannot_go_on(tmp_path: Path) -> None:
    first = a_state()
    for number in (1, 2):
        a_round(first, number)
    path = first.save(tmp_path / "first.safetensors", header(2))
    with pytest.raises(SettingsError, match=r"rounds\.rounds is 1, but the job of first\.safetensors has finished 2"):
        a_state(rounds=replace(ROUNDS, rounds=1)).resume(path)
    assert a_state(rounds=replace(ROUNDS, rounds=2)).resume(path) == 2


def test_more_rounds_other_phases_and_another_budget_may_differ(tmp_path: Path) -> None:
    first = a_state()
    a_round(first, 1)
    path = first.save(tmp_path / "first.safetensors", header(1))
    rounds = replace(ROUNDS, rounds=9, phases=("adapter",), min_sites=1, timeout=5.0, resume="first")
    assert a_state(replace(PRIVACY, epsilon_max=3.0, delta=1e-6), rounds).resume(path) == 1


def test_a_file_that_is_none_or_of_another_version_is_refused_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="holds no round of the shared adapter"):
        a_state().resume(tmp_path / "torn.safetensors")
    first = a_state()
    a_round(first, 1)
    path = first.save(tmp_path / "first.safetensors", header(1))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"clip_norm", b"clap_norm"))
    with pytest.raises(SettingsError, match="written by another version of this package"):
        a_state().resume(path)


def test_a_full_disk_leaves_the_last_state_whole(tmp_path: Path) -> None:
    first = a_state()
    a_round(first, 1)
    path = first.save(tmp_path / "first.safetensors", header(1))
    before = path.read_bytes()
    a_round(first, 2)
    with largest_file(1024), pytest.raises(OSError, match="File too large"):
        first.save(path, header(2))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert a_state().resume(path) == 1


def test_an_update_for_which_there_is_no_room_is_refused_and_the_round_goes_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    one, two = (bytes([value]) * 700 for value in (1, 2))
    first = spool.keep([one])
    with largest_file(1024), pytest.raises(OSError, match="File too large"):
        spool.keep([two, two])
    second = spool.keep([two, one])
    assert list(first) == [one] and list(second) == [two, one] and second[-1:] == [one]
    assert list(tmp_path.iterdir()) == []  # nothing to clean up, however this process ends
    os.truncate(spool._file.fileno(), 1000)
    with pytest.raises(OSError, match="an update that waits on the server's disk has 300 of 700 bytes at 700"):
        list(second)
    spool.close()
    with pytest.raises(ValueError, match="closed file"):
        list(first)
    aggregator = ISFAAggregator({"mode": "uniform"}, PLAIN)
    reply = {site: FLModel(params_type=ParamsType.FULL, params={p.PLAIN: np.ones(SIZE, np.float32)}, meta={
        **header(1), p.VALUES: SIZE, p.IDENTITIES: 1, "client_name": site}) for site in SITES[:2]}
    aggregator.begin_round(header(1), SITES[:2])
    with largest_file(SIZE):
        assert "File too large" in aggregator.accept_model(reply["site-1"])
    assert aggregator.accept_model(reply["site-2"]) == ""
    aggregator.aggregate_model()
    assert set(aggregator.stats) == {"site-2"}


def test_a_clone_says_of_which_job(tmp_path: Path) -> None:
    assert cloned_from(tmp_path) == ""
    (tmp_path / "meta.json").write_text(json.dumps({"name": "job"}), encoding="utf-8")
    assert cloned_from(tmp_path) == ""
    (tmp_path / "meta.json").write_text(json.dumps({"cloned_from": "an-id"}), encoding="utf-8")
    assert cloned_from(tmp_path) == "an-id"


def test_a_second_simulation_goes_on_after_the_first_ones_round(untrained: Path, tmp_path: Path) -> None:
    """Every job of the simulator has the id simulate_job; the server's state outlives the run, its keys do not."""
    for name, settings in (("first", RoundSettings(rounds=1, phases=("adapter",))),
                           ("second", RoundSettings(rounds=2, phases=("adapter",), resume="simulate_job"))):
        PrivFedTalkRecipe(name, data=DataSettings(source="synthetic", people=2, clips=2, seconds=1.0),
                          adapter=AdapterSettings(backbone=str(untrained)), training=BRIEF, rounds=settings,
                          encryption=EncryptionSettings(scheme="off")).export(str(tmp_path))
        run = simulate(tmp_path / name, tmp_path / "run", local="require_encryption: false\n")
        assert run.code == 0, run.output[-3000:]
        if name == "first":
            before = load_summary(run.workspace).rounds[0]
    assert "goes on from job simulate_job after round 1" in run.output
    one, two = load_summary(run.workspace).rounds
    assert replace(one, snr=None, words=[]) == replace(before, snr=None, words=[])
    assert two.epsilon["receivers"] > one.epsilon["receivers"]
    for site in ("site-1", "site-2"):
        lines = (tmp_path / "run-state" / site / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2


def test_a_job_that_names_a_job_which_this_server_never_had_is_refused(untrained: Path, tmp_path: Path) -> None:
    PrivFedTalkRecipe("lost", data=DataSettings(source="synthetic", people=2, clips=2, seconds=1.0),
                      adapter=AdapterSettings(backbone=str(untrained)), training=BRIEF,
                      rounds=RoundSettings(rounds=1, resume="never-was")).export(str(tmp_path))
    run = simulate(tmp_path / "lost", tmp_path / "run")
    assert run.code != 0
    assert "rounds.resume: this server has no" in run.output
    assert not (tmp_path / "run-state" / "site-1" / "ledger.jsonl").exists()
