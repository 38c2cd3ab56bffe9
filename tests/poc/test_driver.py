"""`python poc/run.py`: server and sites as real processes, from kits to the summary, and nothing left behind."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from deployment import ROOT, Deployment, brief_job, free_port, poc_run

from privfedtalk_flare.cli import main
from privfedtalk_flare.evaluation.summary import ROWS, load_summary


def listening(deployment: Deployment) -> set[str]:
    """Addresses on which the deployment's processes listen."""
    return {connection.laddr.ip for process in deployment.processes() for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN}


def test_the_driver_runs_a_job_from_kits_to_summary_and_leaves_no_process(tmp_path: Path) -> None:
    workspace = tmp_path / "poc"
    deployment = Deployment(workspace, 2, free_port())
    command = [sys.executable, str(ROOT / "poc" / "run.py"), "--sites", "2", "--job", str(brief_job(tmp_path)),
               "--workspace", str(workspace), "--port", str(deployment.port)]
    told, addresses = [], set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            told.append(line.rstrip())
            if "round 1/2" in line:
                addresses |= listening(deployment)
    output = "\n".join(told)
    assert process.returncode == 0, output
    assert addresses == {"127.0.0.1"}
    assert deployment.processes() == []
    for words in ("$ nvflare poc prepare", "$ nvflare poc start", "$ nvflare job submit", "$ nvflare job download",
                  "$ nvflare poc stop", "phase adapter begins", "round 2/2", "site-2 validated 2 people",
                  "Held-out clips", "Rounds of the shared adapter"):
        assert words in output
    summary = load_summary(workspace / "results")
    assert tuple(summary.rows) == ROWS and len(summary.rounds) == 2 and summary.notes == []
    assert {name.split(":")[0] for name in summary.videos} == {"site-1", "site-2"}
    for site in deployment.sites:
        context = deployment.kits / site / "startup" / "client_context.tenseal"
        assert stat.S_IMODE(context.stat().st_mode) == 0o600
        assert len(deployment.releases(site)) == 2
        assert main(["check", str(deployment.kits / site)]) == 0


def test_a_workspace_of_other_sites_is_not_overwritten(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, 2, free_port())
    deployment.kits.mkdir(parents=True)
    (tmp_path / "project.yml").write_text("name: other\n", encoding="utf-8")
    with pytest.raises(poc_run.PocError, match="was prepared for other sites or another port; remove it"):
        deployment.prepare()
    assert (tmp_path / "project.yml").read_text(encoding="utf-8") == "name: other\n"


def test_a_command_that_fails_says_which(tmp_path: Path) -> None:
    with pytest.raises(poc_run.PocError, match=r"`privfedtalk check .*` failed with exit code 1"):
        Deployment(tmp_path, 1, free_port())._command("privfedtalk", "check", str(tmp_path / "nowhere"))


@pytest.mark.acceptance
def test_a_driver_that_is_told_to_end_stops_what_it_started(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "poc", 1, free_port())
    command = [sys.executable, str(ROOT / "poc" / "run.py"), "--sites", "1", "--job",
               str(brief_job(tmp_path, min_sites=1)), "--workspace", str(deployment.workspace), "--port",
               str(deployment.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if "phase adapter begins" in line:
                assert deployment.processes()
                process.terminate()
        assert process.wait() == 143
    assert deployment.processes() == []
