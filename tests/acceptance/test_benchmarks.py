"""The benchmarks hold themselves to their bars, and exit with 1 where one is missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("command", [("aggregate.py", "--quick"), ("memory.py",)], ids=lambda command: command[0])
def test_what_one_server_and_one_site_need_keeps_its_bars(command: tuple[str, ...]) -> None:
    name, *flags = command
    done = subprocess.run([sys.executable, BENCHMARKS / name, *flags], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
