"""A POC of real FLARE processes for the tests of this folder, and what can be done to it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe
from privfedtalk_flare.settings import DataSettings, PrivacySettings, RoundSettings, TrainingSettings

ROOT = Path(__file__).resolve().parents[2]
BRIEF = TrainingSettings(steps=2, batch=1)
_SPEC = importlib.util.spec_from_file_location("privfedtalk_poc_run", ROOT / "poc" / "run.py")
poc_run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(poc_run)


def free_port() -> int:
    """A port of loopback that nobody listens on, with the next one free as well."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 1))
                return port


def brief_job(folder: Path, name: str = "brief", training: TrainingSettings = BRIEF, **rounds: Any) -> Path:
    """A job of two people a site, a few steps each, on the shipped backbone, with so much noise that a site's budget
    lasts for many of them."""
    settings = RoundSettings(**{"rounds": 2, "timeout": 120.0, **rounds})
    PrivFedTalkRecipe(name, data=DataSettings(source="synthetic", people=2, clips=3, seconds=1.0), training=training,
                      personalize=BRIEF, privacy=PrivacySettings(noise_multiplier=8.0), rounds=settings
                      ).export(str(folder))
    return folder / name


class Deployment(poc_run.Poc):
    """A started POC; `progress` and `summary` read what a job left."""

    def progress(self, job_id: str) -> list[str]:
        """The job's lines of progress and warnings so far, from its server's log."""
        found = [*(self.kits / "localhost" / job_id).glob("log.json"),
                 *(self.workspace / "results" / job_id).rglob("log.json")]
        lines = found[0].read_text(encoding="utf-8").splitlines() if found else []
        told = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last one may be half written
                told.append(json.loads(line))
        return [one["message"] for one in told if one["fullName"].startswith("privfedtalk_flare.")]

    def until(self, job_id: str, words: str, timeout: float = 240.0) -> None:
        """Waits for a line of progress with these words."""
        wait_for(lambda: any(words in line for line in self.progress(job_id)), f"{words!r} of {job_id}", timeout)

    def status(self, job_id: str) -> str:
        told = self._command("nvflare", "job", "meta", job_id, *self._kit, "--format", "json", quiet=True)
        return str(json.loads(told)["data"]["status"])

    def ended(self, job_id: str, timeout: float = 400.0) -> str:
        """Waits for the job's end and returns its status; `summary` is there then."""
        wait_for(lambda: self.status(job_id).startswith("FINISHED"), f"end of {job_id}", timeout, every=3)
        return self.status(job_id)

    def clone(self, job_id: str) -> str:
        told = self._command("nvflare", "job", "clone", job_id, *self._kit, "--format", "json", quiet=True)
        return str(json.loads(told)["data"]["new_job_id"])

    def summary(self, job_id: str) -> dict[str, Any]:
        (found,) = self.download(job_id).rglob("summary.json")
        return json.loads(found.read_text(encoding="utf-8"))

    def job_process(self, name: str, job_id: str) -> psutil.Process:
        """The process of this job at a site, or at the server."""
        (found,) = [one for one in self.processes() if str(self.kits / name) in " ".join(one.cmdline())
                    and job_id in one.cmdline()]
        return found

    def processes_of(self, name: str) -> list[psutil.Process]:
        return [one for one in self.processes() if any(str(self.kits / name) in word for word in one.cmdline())]

    def kill(self, name: str) -> None:
        """A site's or the server's machine dies: all of its processes at once, those that watch over others first.
        Returns when none is left, not even as a zombie, which a kit that is started takes for an instance that runs."""
        processes = sorted(self.processes_of(name), key=lambda one: one.create_time())
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        _, left = psutil.wait_procs(processes, timeout=30)
        assert not left, f"{name}: {left} are still there"

    def start(self, name: str) -> None:
        self._command("nvflare", "poc", "start", "-p", name, "--no-wait")

    def state(self, name: str) -> Path:
        return self.kits / name / "privfedtalk"

    def connected(self) -> set[str]:
        """The sites that the server knows to be there; none while it is not there itself."""
        try:
            told = self._command("nvflare", "system", "status", *self._kit, "--format", "json", quiet=True)
        except poc_run.PocError:
            return set()
        return {name for name in self.sites if name in told}

    def releases(self, site: str) -> list[dict[str, Any]]:
        """The lines of a site's ledger."""
        lines = (self.state(site) / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def wait_for(true: Callable[[], bool], what: str, timeout: float, every: float = 0.2) -> None:
    deadline = time.time() + timeout
    while not true():
        if time.time() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s for {what}")
        time.sleep(every)


@contextlib.contextmanager
def started(workspace: Path, sites: int) -> Iterator[Deployment]:
    """A prepared and running POC; afterwards none of its processes is left."""
    found = Deployment(workspace, sites, free_port())
    found.prepare()
    found.check()
    with found.running():
        yield found
    assert not found.processes()
