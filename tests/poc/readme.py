"""The README's commands, run as a person types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path

import psutil
from deployment import ROOT

_JOB_ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


def commands(heading: str, replace: Mapping[str, str]) -> list[str]:
    """The code blocks under a heading of the README, as lines, with `replace` done; all of it must occur.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    code = "\n".join(textwrap.dedent(block.partition("\n")[2]) for block in section.split("```")[1::2])
    for old, new in replace.items():
        assert old in code, f"{old!r} is not in the code under {heading!r}"
        code = code.replace(old, new)
    return [line for line in code.splitlines() if line.strip()]


class Shell:
    """Runs lines one after another in the repository's root. Assignments stay, and `ID` is the last job submitted."""

    def __init__(self) -> None:
        self.assigned: list[str] = []
        self.job = "ID"

    def type(self, line: str) -> str:
        """What the command says; it must succeed."""
        if re.match(r"(export )?[A-Z_]+=", line):
            self.assigned.append(line)
        line = re.sub(r"\bID\b", self.job, line)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with tempfile.TemporaryFile("w+") as said:  # a pipe would stay open as long as what the command started
            done = subprocess.run(["bash", "-euc", "\n".join([*self.assigned, line])], cwd=ROOT, text=True,
                                  env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL, stdout=said,
                                  stderr=subprocess.STDOUT, check=False)
            said.seek(0)
            told = said.read()
        assert done.returncode == 0, f"$ {line}\n{told}"
        if "submit" in line and (found := _JOB_ID.search(told)):
            self.job = found.group()
        return told


def processes_under(folder: Path) -> list[psutil.Process]:
    """Processes whose command names something in `folder`."""
    return [one for one in psutil.process_iter(["cmdline"])
            if one.pid != os.getpid() and any(str(folder) in word for word in one.info["cmdline"] or ())]
