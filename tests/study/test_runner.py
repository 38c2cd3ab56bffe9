"""A small study through FLARE's simulator: every method, stopped in the middle and gone on with."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from privfedtalk_flare.cli import main
from privfedtalk_flare.files import locked
from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.study import runner, simulation
from privfedtalk_flare.study.plan import load_study
from privfedtalk_flare.study.processes import RunError
from privfedtalk_flare.study.provenance import made_by
from privfedtalk_flare.study.runner import results_in, run_study
from privfedtalk_flare.study.simulation import Simulation
from privfedtalk_flare.training.worklog import note


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(yaml.safe_dump({
        "name": "tiny", "question": "Does it run?", "seeds": [1], "corpus": {"sites": 2, "people": 1, "clips": [3, 4],
                                                                             "seconds": 1.0},
        "job": {"privacy": {"mechanism": "off"}, "encryption": {"scheme": "off"},
                "training": {"steps": 2, "batch": 1},
                "rounds": {"rounds": 1, "phases": ["adapter", "validate"]}},
        "variants": {"isfa": {}, "isfa shuffled": {"aggregator": "privfedtalk_flare.study.controls.ShuffledScores"},
                     "local": {"method": "local", "rounds": {"rounds": 2}}, "pooled": {"method": "pooled"}},
        "compare": [["isfa", "isfa shuffled"], ["isfa", "local"], ["isfa", "pooled"]]}, sort_keys=False),
        encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def out(file: Path) -> Path:
    """Where the study ran to its end: its third run was stopped, and it was called again."""
    folder, real, said = file.parent / "out", runner.run, []

    def stopped(variant, *where):
        if variant.name == "local":
            raise KeyboardInterrupt
        return real(variant, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_study(load_study(str(file)), folder, said.append)
    (folder / "runs" / "local-1").mkdir()
    (folder / "runs" / "local-1" / "left.txt").write_text("half of a run")
    assert main(["study", str(file), "--out", str(folder)]) == 0
    return folder


def result(out: Path, name: str) -> dict:
    return json.loads((out / "runs" / f"{name.replace(' ', '_')}-1" / "result.json").read_text(encoding="utf-8"))


def test_every_method_measures_the_same_people(out: Path) -> None:
    people = {name: {person for site in result(out, name)["people"].values() for person in site}
              for name in ("isfa", "isfa shuffled", "local", "pooled")}
    assert len(people["isfa"]) == 2 and len(set(map(frozenset, people.values()))) == 1
    truths = {name: {person: pytest.approx(rows["copy_reference"]["psnr_mask"], abs=1e-3)
                     for site in result(out, name)["people"].values() for person, rows in site.items()}
              for name in people}
    isfa = {person: told.expected for person, told in truths["isfa"].items()}
    assert all(isfa == told for told in truths.values())
    assert not (out / "runs" / "local-1" / "left.txt").exists()
    assert not list(out.glob("runs/*/**/cache"))


def test_methods_train_differently(out: Path) -> None:
    shared = {name: sorted(rows["shared"]["psnr_mask"] for site in result(out, name)["people"].values()
                           for rows in site.values()) for name in ("isfa", "local", "pooled")}
    assert len({tuple(values) for values in shared.values()}) == 3


def test_the_shuffled_run_used_the_control_and_a_run_says_what_it_was_made_from(out: Path) -> None:
    server = out / "runs" / "isfa_shuffled-1" / "study" / "app" / "config" / "config_fed_server.json"
    assert "study.controls.ShuffledScores" in server.read_text(encoding="utf-8")
    assert result(out, "isfa shuffled")["made_from"]["aggregator"].endswith("ShuffledScores")
    (aggregator,) = [one for one in json.loads(server.read_text())["components"] if one["id"] == "aggregator"]
    assert aggregator["args"]["seed"] == 1  # the study's: what it draws can be drawn again
    sites = result(out, "isfa shuffled")["summary"]["rounds"][0]["sites"]
    assert set(sites) == {"site-1", "site-2"} and sum(told["weight"] for told in sites.values()) == pytest.approx(1.0)


def test_the_results_are_told_and_what_is_there_is_not_run_again(out: Path, file: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    stamp = (out / "runs" / "isfa-1" / "result.json").stat().st_mtime_ns
    assert main(["study", str(file), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "4 runs, 4 of them done already" in told and "| isfa - pooled |" in told
    assert (out / "results.md").read_text(encoding="utf-8") in told and (out / "report.html").is_file()
    assert (out / "runs" / "isfa-1" / "result.json").stat().st_mtime_ns == stamp


def test_a_study_that_was_changed_does_not_mix_with_what_ran_before(out: Path, file: Path) -> None:
    changed = file.with_name("changed.yaml")
    changed.write_text(file.read_text(encoding="utf-8").replace("steps: 2", "steps: 3"), encoding="utf-8")
    with pytest.raises(SettingsError, match=(r"a run of isfa as it was before something changed "
                                             r"\(sections.training.steps was 2, is 3; settings.training.steps was 2, "
                                             r"is 3\); remove it")):
        run_study(load_study(str(changed)), out, print)
    assert len(results_in(out).variants) == 4  # what ran before can still be read


def test_runs_that_were_measured_on_other_clips_are_named_before_anything_runs(out: Path, file: Path,
                                                                               tmp_path: Path) -> None:
    for name in ("isfa-1", "local-1"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        shutil.copy(out / "runs" / name / "result.json", tmp_path / "runs" / name)
    kept = tmp_path / "runs" / "local-1" / "result.json"
    told = json.loads(kept.read_text(encoding="utf-8"))
    for people in told["people"].values():
        for rows in people.values():
            rows["copy_reference"]["psnr_mask"] += 0.5
    kept.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(RunError, match=r"isfa - local, seed 1: a person was measured on other .* remove what that"):
        run_study(load_study(str(file)), tmp_path, print)
    assert not (tmp_path / "people").exists()


def test_a_result_says_which_code_made_it_and_on_what(out: Path) -> None:
    made = result(out, "local")["made_by"]
    assert made == made_by() and made["torch"] == torch.__version__ and len(made["code"]) == 8
    told = (out / "results.md").read_text(encoding="utf-8")
    makers = f"code of digest {made['code']}, torch {made['torch']}, device {made['device']}"
    assert f"min on {result(out, 'local')['day']}, by {makers}; held-out clips" in told


def test_a_run_that_a_default_or_the_backbone_would_make_otherwise_is_not_taken_for_todays(
        out: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_networks", lambda source: ["another"])
    with pytest.raises(SettingsError, match=r"changed \(networks was \['[0-9a-f]+, is \['another'\]\)"):
        run_study(load_study(str(file)), out, print)
    assert result(out, "local")["made_from"]["settings"]["training"]["batch"] == 1
    assert result(out, "local")["made_from"]["settings"]["adapter"]["rank"] == 8  # a default


def test_another_machine_goes_on_from_the_record(out: Path, file: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    record, values = tmp_path / "RESULTS.md", tmp_path / "results" / "tiny"
    assert main(["study", str(file), "--out", str(out), "--record", str(record)]) == 0
    first = record.read_text(encoding="utf-8")
    assert {path.name for path in values.iterdir()} == {"isfa-1.json", "isfa_shuffled-1.json", "local-1.json",
                                                        "pooled-1.json", "study.yaml"}
    kept = str(values / "study.yaml")
    assert main(["study", kept, "--out", str(tmp_path / "elsewhere"), "--record", str(record)]) == 0
    assert "4 of them done already" in capsys.readouterr().out
    assert record.read_text(encoding="utf-8") == first.replace(str(file), kept)  # the same, however it was called
    assert len(results_in(tmp_path / "elsewhere").variants) == 4


def test_a_folder_is_one_studys_at_a_time(out: Path, file: Path) -> None:
    said = "another `privfedtalk study`, or what is left of one, is at work in this folder"
    with locked(out / "lock"), pytest.raises(SettingsError, match=said):
        run_study(load_study(str(file)), out, print)


def test_a_person_has_the_same_name_in_every_run(out: Path) -> None:
    names = {folder.name: {film.name for film in folder.rglob("videos/*.mp4")} for folder in out.glob("runs/*")}
    assert len(names) == 4 and len(set(map(frozenset, names.values()))) == 1 and len(names["isfa-1"]) == 4


def test_a_run_that_gave_up_a_round_is_no_result(out: Path, file: Path) -> None:
    study = load_study(str(file))
    longer = replace(study.variants["isfa"], sections={**study.variants["isfa"].sections,
                                                       "rounds": {"rounds": 2, "phases": ["adapter", "validate"]}})
    with pytest.raises(RunError, match="1 of 2 rounds were finished"):
        Simulation(longer, 1, out / "runs" / "isfa-1").results()


def test_a_federated_training_that_fails_is_no_result_either(out: Path, file: Path, tmp_path: Path) -> None:
    variant, folder = load_study(str(file)).variants["isfa"], tmp_path / "isfa-1"
    shutil.copytree(out / "runs" / "isfa-1", folder)
    assert set(Simulation(variant, 1, folder).results()) == {"site-1", "site-2"}
    note(folder / "workspace" / "site-2" / "simulate_job", "adapter", 1.0, 2, [math.nan])
    with pytest.raises(RunError, match="1 trainings of people of site-2 failed"):
        Simulation(variant, 1, folder).results()


def test_who_was_not_measured_with_every_adapter_is_missed(file: Path, tmp_path: Path) -> None:
    variant = load_study(str(file)).variants["isfa"]
    rows = {"backbone": {}, "shared": {}}
    simulation._check(variant, {"site-1": {"a": rows}, "site-2": {"b": rows}}, tmp_path)
    with pytest.raises(RunError, match="1 of 2 people were measured in rows backbone, shared"):
        simulation._check(variant, {"site-1": {"a": rows}, "site-2": {"b": {"backbone": {}}}}, tmp_path)


def test_two_results_of_one_run_are_not_chosen_from(out: Path, file: Path, tmp_path: Path) -> None:
    other = {**result(out, "local"), "seconds": 1.0}
    (tmp_path / "local-1.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(SettingsError, match="hold two runs of local seed 1; remove one"):
        run_study(load_study(str(file)), out, print, tmp_path)


def test_who_trains_alone_takes_the_steps_of_all_rounds(out: Path) -> None:
    for name, steps, clips in (("local-1/site-1", 4, 1), ("local-1/site-2", 4, 2), ("pooled-1/pooled", 4, 3)):
        told = (out / "runs" / f"{name}.txt").read_text(encoding="utf-8")
        assert f"{steps} steps on {clips} clips" in told  # two steps a person and round: two rounds, and two people


def test_a_run_that_fails_names_its_log_and_leaves_no_result(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["job"]["training"]["learning_rate"] = 1e30
    content["variants"] = {"local": {"method": "local"}}
    content["compare"] = []
    broken.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RunError, match=r"ended with exit code 1; see .*/runs/local-1/site-[12].txt") as failed:
        run_study(load_study(str(broken)), tmp_path / "out", print)
    log = Path(str(failed.value).rpartition("; see ")[2])
    assert "lower learning_rate" in log.read_text(encoding="utf-8")
    assert not list((tmp_path / "out").rglob("result.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_study_that_is_told_to_end_leaves_no_process(number: signal.Signals, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "privfedtalk_flare.cli", "study", str(file), "--out", str(out)]
    heard = partial(signal.signal, number, signal.SIG_DFL)  # whoever runs this under `nohup` has SIGHUP ignored
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=heard) as process:
        assert waited_for(lambda: len(processes_of(out)) >= 2, 120)  # a simulator in the middle of its run
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert waited_for(lambda: not processes_of(out), 5)


def test_a_run_whose_simulator_loses_a_site_begins_again(out: Path, file: Path, tmp_path: Path) -> None:
    content, said = yaml.safe_load(file.read_text(encoding="utf-8")), []
    log = tmp_path / "out" / "runs" / "isfa-1" / "log.txt"
    one = tmp_path / "one.yaml"
    one.write_text(yaml.safe_dump({**content, "variants": {"isfa": {}}, "compare": []}), encoding="utf-8")

    def lose_site_2() -> None:
        assert waited_for(lambda: log.is_file() and "site-2: works on" in log.read_text(encoding="utf-8"), 120)
        for process, line in processes_of(tmp_path / "out").items():
            if "simulator_worker" in line and "workspace/site-2 " in line:
                os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=lose_site_2)
    killer.start()
    (again,) = run_study(load_study(str(one)), tmp_path / "out", said.append)
    killer.join()
    (told,) = [line for line in said if "begins again" in line]
    assert told.startswith("isfa seed 1 begins again:") and "with client site-2" in told and "log.txt" in told
    assert len(again["people"]) == 2 and again["people"].keys() == result(out, "isfa")["people"].keys()


def processes_of(out: Path) -> dict[int, str]:
    """Command lines, of any process of this machine, that name the folder of runs."""
    lines = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode()
    return {process: line for process, line in lines.items() if f"{out}/runs/" in line}


def waited_for(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def test_a_path_that_flare_would_cut_in_two_is_refused_before_anything_runs(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="with a space in its path; give another --out"):
        run_study(load_study(str(file)), tmp_path / "my studies", print)
    assert not list(tmp_path.iterdir())
