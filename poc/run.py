"""Server and sites as real FLARE processes on this machine: `python poc/run.py --sites 3`.

Prepares start-up kits, starts them, submits a job, follows it, downloads the result, stops everything, and prints the
job's summary. Each step is a command that a person could type; it is printed before it runs. Kits and state stay in
the workspace: the next run starts the same sites, which go on with the same ledgers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import yaml

HERE = Path(__file__).resolve().parent
PROJECT = "privfedtalk_poc"
ADMIN = "admin@privfedtalk.local"
SERVER = "localhost"
PROGRESS = "privfedtalk_flare.run"
"""The logger of a run's progress."""


class PocError(RuntimeError):
    """A step that failed. The message says which, and where its log is."""


class Poc:
    """A POC deployment in a folder of its own, kits and ledgers included."""

    def __init__(self, workspace: Path, sites: int, port: int) -> None:
        self.workspace = workspace.resolve()
        self.sites = [f"site-{number}" for number in range(1, sites + 1)]
        self.port = port
        self.flare = self.workspace / "flare"
        self.kits = self.flare / PROJECT / "prod_00"
        self.environment = {**os.environ, "NVFLARE_POC_WORKSPACE": str(self.flare),
                            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def prepare(self) -> None:
        """Makes the kits, ledgers included; where they are there already, checks that they are for these sites."""
        file = self.workspace / "project.yml"
        project = self._project()
        if self.kits.is_dir():
            if yaml.safe_load(file.read_text(encoding="utf-8")) != project:
                raise PocError(f"{self.workspace} was prepared for other sites or another port; remove it, with the "
                               "ledgers in it, or name another --workspace")
            return
        self.workspace.mkdir(parents=True, exist_ok=True)
        for name, content in (("privfedtalk.yaml", self._site_file()), (file.name, project)):
            (self.workspace / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        self._command("nvflare", "poc", "prepare", "-i", str(file), "--force")

    def _project(self) -> dict[str, Any]:
        project = yaml.safe_load((HERE / "project.yml").read_text(encoding="utf-8"))
        server, site, *_, admin = project["participants"]
        server["fed_learn_port"] = self.port
        project["participants"] = [server, *({**site, "name": name} for name in self.sites), admin]
        finish = project["builders"][-1]["args"]
        finish.update(site_file=str(self.workspace / "privfedtalk.yaml"), policy=str(HERE / "privacy.json"))
        return project

    def _site_file(self) -> dict[str, Any]:
        """The sites' own file: they share the cores of this machine."""
        own = yaml.safe_load((HERE / "privfedtalk.yaml").read_text(encoding="utf-8"))
        return {**own, "threads": max(1, (os.cpu_count() or 1) // len(self.sites))}

    def check(self) -> None:
        """Each site's preflight."""
        with ThreadPoolExecutor(len(self.sites)) as pool:
            for told in pool.map(lambda site: self._command("privfedtalk", "check", str(self.kits / site), quiet=True),
                                 self.sites):
                print(told, flush=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Server and sites as processes; when this ends, none of them is left."""
        if left := self.processes():
            raise PocError(f"processes of {self.flare} are running already: {', '.join(str(one.pid) for one in left)}; "
                           f"NVFLARE_POC_WORKSPACE={self.flare} nvflare poc stop")
        try:
            self._command("nvflare", "poc", "start")
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        with contextlib.suppress(PocError):  # what does not stop when asked is stopped below
            self._command("nvflare", "poc", "stop")
        deadline = time.time() + 30
        while (left := self.processes()) and time.time() < deadline:
            time.sleep(0.5)
        for one in left:
            print(f"process {one.pid} did not stop, and is killed", flush=True)
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()

    def processes(self) -> list[psutil.Process]:
        """FLARE's processes of these kits."""
        found = []
        for one in psutil.process_iter(["cmdline"]):
            words = one.info["cmdline"] or ()
            # A shell that watches over a FLARE process, or the process; not whoever else reads a file of the kits.
            flare = any(word.startswith("nvflare.private.") or word.endswith("start.sh") for word in words)
            if flare and one.pid != os.getpid() and any(str(self.kits) in word for word in words):
                found.append(one)
        return found

    def submit(self, job: Path) -> str:
        """The id of the submitted job."""
        told = self._command("nvflare", "job", "submit", "-j", str(job), *self._kit, "--format", "json", quiet=True)
        return str(json.loads(told)["data"]["job_id"])

    def follow(self, job_id: str) -> None:
        """Prints the job's progress until it has ended. Raises `PocError` unless it has finished well."""
        wait = self._argv("nvflare", "job", "wait", job_id, "--interval", "1", *self._kit)
        log = self.kits / SERVER / job_id / "log.json"  # of the server's job process; a line is an object
        with subprocess.Popen(wait, env=self.environment, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as waiting:
            seen = 0
            while waiting.poll() is None:
                time.sleep(1)
                seen = _show(log, seen)
            _show(log, seen)
            if waiting.returncode:
                raise PocError(f"job {job_id} did not finish well:\n{waiting.stdout.read()}\nThe server's log is {log}")

    def download(self, job_id: str) -> Path:
        """The folder of the downloaded job."""
        folder = self.workspace / "results"
        told = self._command("nvflare", "job", "download", job_id, "-o", str(folder), "--force", *self._kit,
                             "--format", "json", quiet=True)
        return Path(json.loads(told)["data"]["path"])

    @property
    def _kit(self) -> tuple[str, str]:
        return "--startup-kit", str(self.kits / ADMIN)

    def _argv(self, *words: str) -> list[str]:
        print(f"$ {shlex.join(words)}", flush=True)
        return list(words)

    def _command(self, *words: str, quiet: bool = False) -> str:
        """Runs a command with its output shown, or, `quiet`, returned. Raises `PocError` where it fails."""
        done = subprocess.run(self._argv(*words), env=self.environment, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE if quiet else None, check=False)
        if done.returncode:
            raise PocError(f"`{shlex.join(words)}` failed with exit code {done.returncode}\n{done.stdout or ''}")
        return done.stdout or ""


def _show(log: Path, seen: int) -> int:
    """Prints progress and warnings from byte `seen` of the log on; returns how far it came: to the last whole line."""
    if not log.is_file():
        return seen
    with log.open("rb") as file:
        file.seek(seen)
        new, newline, _ = file.read().rpartition(b"\n")
    for line in new.splitlines():
        told = json.loads(line)
        warned = told["levelname"] != "INFO" and told["fullName"].startswith("privfedtalk_flare.")
        if warned or told["fullName"] == PROGRESS:
            print(f"{told['asctime'][11:19]}  {told['message']}", flush=True)
    return seen + len(new) + len(newline)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=3, help="how many sites (default 3)")
    parser.add_argument("--job", type=Path, default=HERE.parent / "jobs" / "privfedtalk",
                        help="the job's folder (default jobs/privfedtalk)")
    parser.add_argument("--workspace", type=Path, default=Path("runs/poc"), help="folder for all of it (runs/poc)")
    parser.add_argument("--port", type=int, default=8002, help="the server's port on loopback (default 8002)")
    parsed = parser.parse_args()
    poc = Poc(parsed.workspace, parsed.sites, parsed.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is stopped
    try:
        poc.prepare()
        poc.check()
        with poc.running():
            job_id = poc.submit(parsed.job)
            poc.follow(job_id)
            result = poc.download(job_id)
        poc._command("privfedtalk", "summary", str(result))
    except PocError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\nServer's results: {result}\nSites' videos:    {poc.kits}/site-*/{job_id}/videos\n"
          f"Sites' adapters:  {poc.kits}/site-*/privfedtalk")
    return 0


if __name__ == "__main__":
    sys.exit(main())
