"""Real runs that go on although sites fail, and runs that are refused, each with its reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from simulation import BRIEF, Run, simulate

from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe
from privfedtalk_flare.settings import AdapterSettings, DataSettings, EncryptionSettings, RoundSettings

PEOPLE = DataSettings(source="synthetic", people=2, clips=2, seconds=1.0)


def edit(job: Path, file: str, change: Any) -> None:
    path = job / "app" / "config" / file
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def odd_job(folder: Path, backbone: Path, change: Any, **rounds: Any) -> Path:
    """A job that carries `misbehaving.py`, with its client configuration changed."""
    PrivFedTalkRecipe("odd", data=PEOPLE, adapter=AdapterSettings(backbone=str(backbone)), training=BRIEF,
                      personalize=BRIEF, rounds=RoundSettings(phases=("adapter", "personalize"), **rounds)).export(
        str(folder))
    shutil.copy(Path(__file__).with_name("misbehaving.py"), folder / "odd" / "app" / "custom" / "study_misbehaving.py")
    edit(folder / "odd", "config_fed_client.json", change)
    return folder / "odd"


@pytest.fixture(scope="module")
def misbehaving(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three sites: one fails in round 1, one answers for another round; min_sites is 1.

    Every site allows epsilon 7 at most, which two rounds reach and a third would pass.
    """
    folder = tmp_path_factory.mktemp("misbehaving")
    path = "study_misbehaving.Unreliable"
    job = odd_job(folder, untrained, lambda c: c["executors"][0]["executor"].update(path=path), rounds=3, min_sites=1)
    return simulate(job, folder / "run", clients=3, local="epsilon_max: 7\n")


def test_a_site_out_of_memory_sits_out_one_round(misbehaving: Run) -> None:
    assert misbehaving.code == 0, misbehaving.output[-3000:]
    first, second = load_summary(misbehaving.workspace).rounds
    assert set(first.sites) == {"site-1", "site-3"}
    assert set(second.sites) == {"site-1", "site-2", "site-3"}
    assert "site-2 refused: out_of_memory" in load_summary(misbehaving.workspace).notes


def test_a_spent_budget_ends_the_phase_in_order(misbehaving: Run) -> None:
    summary = load_summary(misbehaving.workspace)
    assert "site-1 refused: budget_exceeded" in summary.notes
    assert any(note.startswith("phase adapter ended early: 0 good replies") for note in summary.notes)
    assert summary.rounds[-1].epsilon["receivers"] < 7
    assert summary.adapters  # the next phase went on with what there was


def test_no_private_text_reaches_the_server(misbehaving: Run) -> None:
    assert "alice" in misbehaving.log("site-2")
    assert "alice" not in (misbehaving.workspace / "server" / "log.txt").read_text(encoding="utf-8")
    assert "alice" not in (misbehaving.workspace / "site-2" / "error_log.txt").read_text(encoding="utf-8")


def test_a_stale_reply_is_refused_and_the_round_goes_on(misbehaving: Run) -> None:
    summary = load_summary(misbehaving.workspace)
    assert any(note.startswith("site-3 refused: nonce is") for note in summary.notes)
    assert {name.split(":")[0] for name in summary.adapters} == {"site-1", "site-2"}


def test_the_signal_to_noise_ratio_of_every_round_is_told(misbehaving: Run) -> None:
    assert all(entry.snr is not None for entry in load_summary(misbehaving.workspace).rounds)


def test_a_site_that_sends_more_than_it_may_is_found_by_those_who_receive(untrained: Path, tmp_path: Path) -> None:
    def add_loud(config: dict) -> None:
        chain = next(c for c in config["task_result_filters"] if "adapter" in c["tasks"])["filters"]
        chain.insert(1, {"path": "study_misbehaving.Loud", "args": {}})

    run = simulate(odd_job(tmp_path, untrained, add_loud, rounds=3), tmp_path / "run")
    assert run.code == 0, run.output[-3000:]
    summary = load_summary(run.workspace)
    assert len(summary.rounds) == 1 and not summary.adapters
    for said in ("site-1 refused: step_refused", "site-2 refused: step_refused", "site-1 refused: stopped",
                 "phase adapter ended early: most sites refused the last step of the shared adapter"):
        assert any(note.startswith(said) for note in summary.notes), summary.notes
    lines = (tmp_path / "run-state" / "site-1" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1  # what was refused is not booked


def test_a_job_without_encryption_is_refused_by_sites_that_demand_it(tmp_path: Path) -> None:
    PrivFedTalkRecipe("bare", data=PEOPLE, encryption=EncryptionSettings(scheme="off"),
                      rounds=RoundSettings(phases=("adapter",), rounds=1)).export(str(tmp_path))
    run = simulate(tmp_path / "bare", tmp_path / "run")
    assert run.code != 0
    assert load_summary(run.workspace).rounds == []
    assert "site-1 refused: encryption_required" in load_summary(run.workspace).notes
    assert not (tmp_path / "run-state" / "site-1" / "ledger.jsonl").exists()  # nothing was trained or booked


def test_a_missing_backbone_ends_the_run_and_the_site_says_what_to_do(tmp_path: Path) -> None:
    PrivFedTalkRecipe("lost", data=PEOPLE, adapter=AdapterSettings(backbone=str(tmp_path / "nowhere")), training=BRIEF,
                      rounds=RoundSettings(phases=("adapter",), rounds=1)).export(str(tmp_path))
    run = simulate(tmp_path / "lost", tmp_path / "run")
    assert run.code != 0
    assert "site-1 refused: missing_asset" in load_summary(run.workspace).notes
    assert str(tmp_path / "nowhere") in run.log("site-1")


@pytest.mark.parametrize(("change", "said"), [
    (lambda c: c["privacy"].update(sigma=1.0), "unknown setting 'sigma'; the choices are mechanism, noise,"),
    (lambda c: c["rounds"].update(phases=["adapt"]), "got 'adapt'; the choices are backbone, adapter, personalize"),
    (lambda c: c.pop("privacy"), "privacy: the job's configuration has no section of this name")])
def test_an_unknown_setting_stops_the_job_with_the_choices(tmp_path: Path, change: Any, said: str) -> None:
    PrivFedTalkRecipe("typo", data=PEOPLE).export(str(tmp_path))
    edit(tmp_path / "typo", "config_fed_server.json", change)
    run = simulate(tmp_path / "typo", tmp_path / "run")
    assert run.code != 0
    assert said in run.output


def test_an_unknown_key_of_a_sites_own_file_stops_the_site(tmp_path: Path) -> None:
    PrivFedTalkRecipe("typo", data=PEOPLE, rounds=RoundSettings(phases=("adapter",), rounds=1)).export(str(tmp_path))
    run = simulate(tmp_path / "typo", tmp_path / "run", local="corpse: /data\n")
    assert run.code != 0
    assert "unknown setting 'corpse'; the choices are corpus, state, devices" in run.output
