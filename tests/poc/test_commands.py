"""Every step of a deployment as the README writes it out, typed: `nvflare poc`, `nvflare job`, the admin console; and a
deployment at several sites, provisioned, with a job that brings no code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from deployment import ROOT, brief_job, free_port, wait_for
from readme import Shell, commands, processes_under

from privfedtalk_flare.data.synthetic import Person, write_corpus
from privfedtalk_flare.evaluation.summary import load_summary

pytestmark = pytest.mark.acceptance

SITES = {"site-1", "site-2", "site-3"}
BRIEFLY = "--rounds 1 --steps 2"


def on_a_free_port(folder: Path) -> Path:
    """poc/project.yml on a port that nobody listens on; `folder` is made for it."""
    project = yaml.safe_load((ROOT / "poc" / "project.yml").read_text(encoding="utf-8"))
    project["participants"][0]["fed_learn_port"] = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
    return folder / "project.yml"


def test_a_poc_by_hand_and_through_the_admin_console(tmp_path: Path) -> None:
    folder, job, shell = tmp_path / "by-hand", brief_job(tmp_path), Shell()
    typed = commands("Run it as real processes", {
        "$PWD/jobs/privfedtalk": str(job), "jobs/privfedtalk": str(job), "$PWD/runs/by-hand": str(folder),
        "runs/by-hand": str(folder), "poc/project.yml": str(on_a_free_port(tmp_path / "project"))})
    stop = typed.index("nvflare poc stop")
    console = next(number for number, line in enumerate(typed) if line.startswith("ADMIN="))
    assert stop < console
    try:
        for line in typed[:stop]:
            shell.type(line)
        first = shell.job
        for line in typed[console:]:
            told = shell.type(line)
        assert shell.job != first and "brief" in told, told  # `list_jobs` shows both
        shell.type("nvflare job wait ID")
    finally:
        shell.type(typed[stop])
    for line in typed[stop + 1:console]:
        told = shell.type(line)
    assert "Held-out clips" in told and "Rounds of the shared adapter" in told
    wait_for(lambda: not processes_under(folder), "every process to be gone", 60)


def test_a_provisioned_deployment_runs_a_job_that_brings_no_code(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "poc", tmp_path / "poc")
    project = yaml.safe_load(on_a_free_port(tmp_path / "project").read_text(encoding="utf-8"))
    finish = project["builders"][-1]["args"]
    del finish["one_machine"]
    finish.update(site_file=str(tmp_path / "poc" / "privfedtalk.yaml"), policy=str(tmp_path / "poc" / "privacy.json"))
    (tmp_path / "poc" / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
    kits, job = tmp_path / "kits" / "privfedtalk_poc" / "prod_00", tmp_path / "to-submit"
    typed = commands("Deploy it at several sites", {
        "poc/project.yml": str(tmp_path / "poc" / "project.yml"), "-w kits": f"-w {tmp_path / 'kits'}",
        "ADMIN_KIT": str(kits / "admin@privfedtalk.local"), "to-submit": str(job),
        "-o results": f"-o {tmp_path / 'results'}"})
    shell = Shell()
    provision, *site, build, submit, wait, download = typed
    shell.type(provision)
    for number, name in enumerate(sorted(SITES)):
        write_corpus(tmp_path / "corpus" / name, [Person.draw(1, 2 * number + one) for one in range(2)], 3, 1.0)
        with (kits / name / "local" / "privfedtalk.yaml").open("a", encoding="utf-8") as file:
            file.write(f"corpus: {tmp_path / 'corpus' / name}\n")
    try:
        shell.type(f"{kits / 'localhost'}/startup/start.sh")
        for name in sorted(SITES):
            for line in site:
                shell.type(line.replace("KIT", str(kits / name)))
        shell.type(build)
        shorten(job / "privfedtalk")
        status = f"nvflare system status --startup-kit {kits / 'admin@privfedtalk.local'} --format json"
        wait_for(lambda: set(re.findall(r"site-\d", shell.type(status))) == SITES, "sites to register", 120, every=3)
        shell.type(submit)
        shell.type(wait)
        shell.type(download)
        own_code = shell.type(f"python poc/job.py --env prod --kit {kits / 'admin@privfedtalk.local'} {BRIEFLY}")
    finally:
        for process in sorted(processes_under(kits), key=lambda one: one.create_time()):  # who restarts others, first
            process.kill()
    summary = load_summary(tmp_path / "results" / shell.job)
    assert len(summary.rounds) == 1 and set(summary.rounds[0].sites) == SITES
    assert summary.notes == []
    assert not (job / "privfedtalk" / "app" / "custom").exists()
    assert "Held-out clips" in own_code and "site-3" in own_code


def test_a_trial_in_the_simulator_with_clips_of_its_own(tmp_path: Path) -> None:
    replaced = {"%s/runs": "%s", '"$PWD" "$PWD"': f"{tmp_path} {tmp_path}", " runs/": f" {tmp_path}/",
                "--clips 12": "--clips 3"}
    typed = [line for line in commands("Train on your own clips", replaced)
             if line.startswith(("privfedtalk ", "mkdir ", "printf ", "nvflare "))]
    shell = Shell()
    for line in typed:
        told = shell.type(line)
        if "job build" in line:
            shorten(tmp_path / "own-jobs" / "privfedtalk")
    assert "Mean over 4 people" in told and "site-2" in told


def test_one_study_in_the_simulator_and_as_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVFLARE_POC_WORKSPACE", str(tmp_path / "poc"))
    for place, sites in (("sim", ("site-1", "site-2")), ("poc", ("site-1", "site-2", "site-3"))):
        told = Shell().type(f"python poc/job.py --env {place} {BRIEFLY} --min-sites {len(sites)}")
        assert "Held-out clips" in told and "Rounds of the shared adapter" in told
        assert all(site in told for site in sites)
    wait_for(lambda: not processes_under(tmp_path / "poc"), "every process to be gone", 60)


def shorten(job: Path) -> None:
    """A job's configuration with one brief round."""
    for file in (job / "app" / "config").glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        for section, changed in (("training", {"steps": 2, "batch": 1}),
                                 ("personalize", {"steps": 2, "batch": 1}), ("rounds", {"rounds": 1})):
            if section in content:
                content[section].update(changed)
        file.write_text(json.dumps(content), encoding="utf-8")
