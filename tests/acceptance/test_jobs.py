"""What a user types, whole: the jobs with no flags, a wheel installed elsewhere, a backbone trained again,
membership inference on real updates."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from privfedtalk_flare.evaluation.summary import ROWS, Summary, load_summary

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 12
"""Most that a job may take without flags: FLARE then starts a process for every task of every site."""

pytestmark = pytest.mark.acceptance


def run(*command: str | Path, cwd: Path, minutes: float = MINUTES) -> str:
    """The output of a command, which must end well and in time, and leaves no process. Its home is `cwd`, so that no
    ledger of an earlier run counts, and what it imports is what is installed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen([str(part) for part in command], cwd=cwd, env={**env, "HOME": str(cwd)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=60 * minutes)
        finally:
            with contextlib.suppress(ProcessLookupError):  # FLARE's own children outlive it where it was stopped
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-4000:]
    return output


def assert_whole(summary: Summary) -> None:
    """Every row over every rendered person, three rounds, nothing refused, and an epsilon that was promised."""
    assert tuple(summary.rows) == ROWS
    assert {told["psnr_mask"]["n"] for told in summary.rows.values()} == {4}
    assert [entry.round for entry in summary.rounds] == [1, 2, 3]
    assert summary.notes == []
    assert summary.rounds[-1].epsilon["receivers"] <= 10
    assert len(summary.videos) > 0 and len(summary.adapters) > 0


@pytest.mark.parametrize("name", ["privfedtalk_sealed", "fedavg", "fedprox"])
def test_a_job_runs_with_no_flags(name: str, tmp_path: Path) -> None:
    run(Path(sys.executable).with_name("nvflare"), "simulator", ROOT / "jobs" / name, cwd=tmp_path)
    assert_whole(load_summary(tmp_path / "simulator_workspace"))


def test_a_wheel_installed_elsewhere_runs_the_main_job_with_no_flags(tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    wheel, = tmp_path.glob("*.whl")
    venv.create(tmp_path / "elsewhere", with_pip=True)
    own = tmp_path / "elsewhere" / "bin"
    run(own / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    where = run(own / "python", "-c", "import privfedtalk_flare as p; print(p.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path / "elsewhere"))
    run(own / "privfedtalk", "job", "build", "privfedtalk", "--out", tmp_path / "jobs", cwd=tmp_path)
    run(own / "nvflare", "simulator", tmp_path / "jobs" / "privfedtalk", cwd=tmp_path)
    assert_whole(load_summary(tmp_path / "simulator_workspace"))
    assert "personalized" in run(own / "privfedtalk", "summary", tmp_path / "simulator_workspace", cwd=tmp_path)


def test_the_shipped_backbone_keeps_its_bars(tmp_path: Path) -> None:
    assert "all stated numbers reached" in run(sys.executable, ROOT / "tests" / "benchmarks" / "backbone.py",
                                               "--shipped", cwd=tmp_path)


def test_a_reduced_backbone_training_reaches_its_stated_numbers(tmp_path: Path) -> None:
    said = run(sys.executable, ROOT / "tests" / "benchmarks" / "backbone.py", "--out", tmp_path / "run", cwd=tmp_path,
               minutes=30)
    assert "all stated numbers reached" in said


def test_members_are_found_without_noise_and_not_under_it(tmp_path: Path) -> None:
    benchmark = ROOT / "tests" / "benchmarks" / "membership.py"
    output = run(sys.executable, benchmark, "--epsilons", "8", "0.5", "--trials", "10", cwd=tmp_path, minutes=20)
    assert "both hold" in output.splitlines()[-1]
