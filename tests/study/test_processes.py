"""Processes that a study starts: held together by its lock, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from privfedtalk_flare.files import locked
from privfedtalk_flare.study.processes import Command, StalledError, run_all, terminated_in_order

HOLDING = """
import sys
from pathlib import Path
from privfedtalk_flare.files import locked
from privfedtalk_flare.study.processes import Command, run_all
with locked(Path(sys.argv[1]), inherited=True):
    run_all([Command([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
                     Path(sys.argv[2]))], 1, {})
"""
LEAVING = ("import subprocess, sys, time; "
           "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
           "print(child.pid, 'lost', flush=True); time.sleep(60)")


def waited_for(path: Path) -> str:
    until = time.monotonic() + 20
    while time.monotonic() < until and not (path.is_file() and path.read_text().endswith("\n")):
        time.sleep(0.05)
    return path.read_text()


def has_ended(pid: int) -> bool:
    """Whether it ends within seconds: a process that is killed is there for a moment yet, and then until it is waited
    for."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_lock_is_held_as_long_as_what_was_started_under_it(tmp_path: Path) -> None:
    lock, log = tmp_path / "lock", tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(lock), str(log)]) as process:
        assert waited_for(log) == "up\n"
        (left,) = psutil.Process(process.pid).children()
        process.kill()
    with pytest.raises(BlockingIOError), locked(lock, wait=False):
        pass
    left.kill()
    psutil.wait_procs([left], 5)
    with locked(lock, wait=False):
        pass


def test_what_a_stalled_command_started_in_a_session_of_its_own_ends_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(StalledError, match="lost"):
        run_all([Command([sys.executable, "-c", LEAVING], log, ("lost",))], 1, {})
    assert has_ended(int(log.read_text().split()[0]))


def test_a_child_that_ends_by_itself_does_not_save_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        gone = psutil.Process(ended.pid)
    children = psutil.Process.children
    monkeypatch.setattr(psutil.Process, "children", lambda self, **more: [gone, *children(self, **more)])
    test_what_a_stalled_command_started_in_a_session_of_its_own_ends_with_it(tmp_path)


@pytest.mark.parametrize("code", [0, 1])
def test_a_command_that_ends_at_once_with_what_stalls_it_may_be_tried_again(code: int, tmp_path: Path) -> None:
    said = f"import sys; print('lost a site'); sys.exit({code})"
    with pytest.raises(StalledError, match="lost a site"):
        run_all([Command([sys.executable, "-c", said], tmp_path / "log", ("lost",))], 1, {})


def test_a_hangup_that_is_ignored_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminated_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
