"""Commands that run beside each other, of which nothing is left when their caller ends (unless by SIGKILL)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL = 0.1
"""Seconds between two looks at what runs."""


class RunError(ValueError):
    """A run that did not end well. The message names its log."""


class StalledError(RunError):
    """A run whose log said that it would not end well: it was not waited for, and another try may end well."""


@dataclass(frozen=True)
class Command:
    """Words of a command, the file that its output goes into, and texts in it that say that it will not end well."""

    words: Sequence[object]
    log: Path
    stalled: tuple[str, ...] = ()


def run_all(commands: Sequence[Command], beside: int, environment: Mapping[str, str]) -> None:
    """Runs the commands to their ends, at most `beside` at once. Raises `RunError` as soon as one fails, and
    `StalledError` as soon as one has stalled.

    Each has a process group of its own, which is killed when it ends, and what it started with it when this is left by
    an exception: FLARE's simulator may leave processes of its own behind.
    """
    waiting, running = list(commands), []
    try:
        while waiting or running:
            while waiting and len(running) < beside:
                running.append((waiting[0], _start(waiting.pop(0), environment)))
            time.sleep(POLL)
            ended = [one for one in running if one[1].poll() is not None]
            for command, _ in running:
                _check(command)
            for command, process in ended:
                running.remove((command, process))
                _kill(process)
                if process.returncode:
                    raise RunError(f"`{command.words[0]}` ended with exit code {process.returncode}; see {command.log}")
    finally:
        for _, process in running:
            _kill(process)


@contextlib.contextmanager
def terminated_in_order() -> Iterator[None]:
    """SIGTERM, and the SIGHUP of a terminal that closes, raise SystemExit while this holds, so that every `finally` is
    reached; main thread alone. What is ignored, as SIGHUP under `nohup`, stays so."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(command: Command, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with command.log.open("wb") as output:
        return subprocess.Popen([str(word) for word in command.words], stdin=subprocess.DEVNULL, stdout=output,
                                stderr=subprocess.STDOUT, env={**os.environ, **environment}, start_new_session=True,
                                close_fds=False)  # what is inheritable is a lock, held until the last of them ends


def _check(command: Command) -> None:
    if command.stalled:
        said = command.log.read_text(encoding="utf-8", errors="replace")
        if line := next((line for line in said.splitlines() if any(text in line for text in command.stalled)), ""):
            raise StalledError(f"{line.strip()} ({command.log})")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Its group, and what it started, as FLARE's simulator gives each site a group of its own."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may just have ended by itself
            child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
