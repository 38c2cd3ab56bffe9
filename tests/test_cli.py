"""The command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from privfedtalk_flare.cli import main
from privfedtalk_flare.privacy.accountant import Release
from privfedtalk_flare.privacy.ledger import Entry, Ledger
from privfedtalk_flare.privacy.opening import LedgerFiles, create

PROGRAM = str(Path(sys.executable).parent / "privfedtalk")


def test_help_answers_within_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([PROGRAM, "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 1  # the best of three: the machine is shared


def test_help_imports_nothing_heavy() -> None:
    code = ("import sys; import privfedtalk_flare.cli as c; c.build_parser(); "
            "print(sorted({'torch', 'numpy', 'nvflare', 'tenseal'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("arguments", "choices"), [
    (["train"], "'generate', 'personalize', 'summary', 'report', 'study', 'job'"),
    (["job", "make"], "'build'"), (["data", "make"], "'prepare'"),
    (["privacy", "make"], "'init', 'show', 'audit', 'plan'")])
def test_unknown_commands_list_the_choices(arguments: list[str], choices: str,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    said = capsys.readouterr().err
    assert arguments[-1] in said
    assert choices.replace("'", "") in said.replace("'", "")


def test_an_unknown_job_is_one_line_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "build", "fedsgd"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("privfedtalk: job 'fedsgd' is unknown; the choices are privfedtalk,")


def test_a_missing_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_data_prepare_writes_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", str(tmp_path), "--people", "1", "--clips", "2", "--seconds", "1"]) == 0
    assert len(list(tmp_path.glob("*/*.mp4"))) == 2
    assert "2 clips of 1 people" in capsys.readouterr().out
    assert main(["data", "prepare", str(tmp_path), "--people", "0"]) == 1


PLAN = ["privacy", "plan", "--identities", "3532", "--rounds", "100", "--epsilon", "8"]


def test_privacy_plan_prints_a_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--mode", "sealed", "--gamma", "2", "--plot", str(tmp_path / "plan.png")]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert ["noise", "multiplier", "sigma", "6.003"] in rows
    assert ["left", "of", "step", "and", "signal", "0.368", "0.670"] in rows
    assert ["people,", "at", "least", "9,797", "5,377"] in rows
    assert said.splitlines()[-1] == str(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_privacy_plan_of_a_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--sampling", "0.01", "--mode", "uniform", "--accountant", "rdp", "--delta", "1e-6", "--sites",
                 "8", "--values", "20000"]) == 0
    said = capsys.readouterr().out
    assert "35.3 expected (q 0.01)" in said and "3,532, 8" in said and "20,000" in said
    assert "epsilon at delta 1e-06" in said and "Opacus' RDP accountant" in said


@pytest.mark.parametrize(("arguments", "words"), [
    (["--identities", "0"], "plan.identities: must be at least 1, got 0"),
    (["--rounds", "0"], "plan.rounds: must be at least 1, got 0"),
    (["--epsilon", "-1"], "plan.epsilon: must be at least 0.001, got -1.0"),
    (["--epsilon", "nan"], "plan.epsilon: must be finite, got nan"),
    (["--delta", "0.6"], "plan.delta: must be at most 0.5, got 0.6"),
    (["--sampling", "1.5"], "plan.sampling: must be at most 1.0, got 1.5"),
    (["--mode", "secret"], "plan.mode: got 'secret'; the choices are metadata, counts, sealed, uniform"),
    (["--gamma", "11"], "plan.gamma: must be at most 10.0, got 11.0"),
    (["--values", "0"], "plan.values: must be at least 1, got 0"),
    (["--sites", "0"], "plan.sites: must be at least 1, got 0"),
    (["--accountant", "gdp"], "plan.accountant: got 'gdp'; the choices are prv, rdp"),
    (["--plot", "plan.jpg"], "--plot plan.jpg: the picture is a PNG"),
    (["--sampling", "0.1"], "plan.sampling 0.1 does not go with plan.mode 'metadata'")])
def test_privacy_plan_out_of_range_is_one_line(arguments: list[str], words: str,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, *arguments]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and words in said[0]


def workspace(folder: Path, yaml: str = "", kit: bool = True) -> Path:
    """A site's FLARE workspace: with a start-up kit of project `study`, or as the simulator leaves it."""
    for name in ("startup", "local"):
        (folder / name).mkdir(parents=True)
    if kit:
        told = {"servers": [{"name": "study"}], "client": {"fqsn": "clinic"}}
        (folder / "startup" / "fed_client.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "local" / "privfedtalk.yaml").write_text(f"state: {folder.parent}/state/{{site}}\n{yaml}",
                                                       encoding="utf-8")
    return folder


def test_privacy_init_makes_a_ledger_once_and_show_prints_it(tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    site, state = str(workspace(tmp_path / "site", "epsilon_max: 8\n")), tmp_path / "state" / "clinic"
    assert main(["privacy", "show", site]) == 1
    assert "has no privacy ledger; run `privfedtalk privacy init WORKSPACE` once" in capsys.readouterr().err
    assert main(["privacy", "init", site]) == 0
    said = capsys.readouterr().out
    for path in (state / "ledger.jsonl", *(tmp_path / "site" / "local" / f"ledger.{end}" for end in ("key", "anchor"))):
        assert path.is_file() and str(path) in said
    assert "The anchor lies beside the key" in said and "Back up all three" in said
    assert main(["privacy", "init", site]) == 1
    assert "a ledger is never started anew" in capsys.readouterr().err
    Ledger(state, tmp_path / "site" / "local").reserve(
        Entry("job-1", "adapter", 1, "n", Release(4.0, "coarse"), 0.004, 1e-5))
    assert main(["privacy", "show", site]) == 0
    said = capsys.readouterr().out
    row = next(line.split() for line in said.splitlines() if "gaussian" in line)
    assert row[2:9] == ["job-1", "1", "gaussian", "4", "0.004/m", "identity", "local"]
    assert "Privacy ledger of clinic" in said and "1 release; epsilon_max 8, of which 7.0" in said


def test_privacy_show_of_a_ledger_that_was_cut_says_what_to_do(tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    site, state = str(workspace(tmp_path / "site", f"anchor: {tmp_path}/disk\n")), tmp_path / "state" / "clinic"
    assert main(["privacy", "init", site]) == 0 and (tmp_path / "disk" / "ledger.anchor").is_file()
    Ledger(state, tmp_path / "site" / "local", tmp_path / "disk").reserve(
        Entry("job-1", "adapter", 1, "n", Release(4.0), 0.004, 1e-5))
    (state / "ledger.jsonl").write_bytes(b"")
    capsys.readouterr()
    assert main(["privacy", "show", site]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "lines were cut off or replaced. Restore the newest ledger from a backup" in said[0]


def test_privacy_show_finds_the_ledger_of_a_simulated_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = workspace(tmp_path / "site-2", kit=False)
    create(LedgerFiles.of(tmp_path / "state" / "site-2"))
    assert main(["privacy", "show", str(site)]) == 0
    assert "Privacy ledger of site-2" in capsys.readouterr().out
    assert main(["privacy", "show", str(site), "--site", "site-3"]) == 1
    assert "site-3/ledger.jsonl: this site has no privacy ledger" in capsys.readouterr().err


@pytest.mark.parametrize(("names", "said"), [
    ((), "is no FLARE workspace of a site: it needs the site's own startup and local"),
    (("startup", "local", "server"), "is a whole simulation; give the folder of one site in it, such as"),
    (("startup", "local", "startup/fed_server.json"), "is no FLARE workspace of a site")])
def test_privacy_init_wants_a_sites_workspace(tmp_path: Path, names: tuple[str, ...], said: str,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert main(["privacy", "init", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("ledger*"))
