"""Real simulator runs for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import privfedtalk_flare
from privfedtalk_flare.settings import TrainingSettings

CONSOLE = Path(privfedtalk_flare.__file__).parent / "flare" / "console.json"
BRIEF = TrainingSettings(steps=2, batch=1)


@dataclass(frozen=True)
class Run:
    """A finished simulator run: its workspace, exit code and console."""

    workspace: Path
    code: int
    output: str

    @property
    def server(self) -> Path:
        return self.workspace / "server" / "simulate_job"

    def log(self, site: str) -> str:
        """A site's own log."""
        return (self.workspace / site / "log.txt").read_text(encoding="utf-8")


def simulate(job: Path, workspace: Path, *, clients: int = 2, threads: int | None = None, local: str = "",
             env: Mapping[str, str] | None = None, timeout: float = 300) -> Run:
    """Runs `job` in FLARE's simulator, all clients at once. `local` is the sites' privfedtalk.yaml, less `state`."""
    (workspace / "local").mkdir(parents=True, exist_ok=True)
    state = f"state: {workspace.parent / (workspace.name + '-state')}/{{site}}\n"
    (workspace / "local" / "privfedtalk.yaml").write_text(state + local, encoding="utf-8")
    command = [str(Path(sys.executable).parent / "nvflare"), "simulator", str(job), "-w", str(workspace),
               "-n", str(clients), "-t", str(threads or clients)]
    done = subprocess.run(command, env={**os.environ, "FL_LOG_LEVEL": str(CONSOLE), **(env or {})},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)
    return Run(workspace, done.returncode, done.stdout)
