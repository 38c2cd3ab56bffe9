"""What made a run: the state of the code, and what it computed on. It is said beside the results, as runs that are
compared may differ by it too."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch

import privfedtalk_flare
from privfedtalk_flare.flare.recipe import CUSTOM
from privfedtalk_flare.generator.codec import multiplies_bf16

NUMBERS = ("settings.py", "data", "encryption", "evaluation", "federation", "flare", "generator", "privacy",
           "reliability.py", "snr.py", "training", "study/alone.py", "study/controls.py", "study/people.py")
"""Modules and folders of the package that decide numbers."""

SAME_NUMBERS = {
    "f2848d53": "methods and most of heterogeneity were run by it",
    "e5e404c4": "the digest is of reliability.py too; heads of tables, the name of a function",
    "fb30131f": "the digest leaves docstrings out",
    "777d196e": "jobs for a site's own clips, words, two defaults of TDC that every study sets itself",
    "c5115de7": "what a summary may hold is checked as it is read; words of tables and of how little a signal is",
    "49bc1422": "the digest reads the files in the same order wherever the package lies",
    "6b6c407d": "what the planner says of a signal below the noise",
    "7897722f": "what is said of a signal below the noise, words of tables and notes, a backbone's measurement",
}
"""Digests of code that decides the same numbers in every study, and in what each differs from the one before it, as
whoever changed it found by reading the change. A result keeps the digest of the code that made it."""


def made_by() -> dict[str, str]:
    """`code`: eight hex digits of what the code says, whatever its layout, comments and docstrings (as one version of
    Python reads it; another may say other digits); `torch`: its version; `device`: where it computes. Codec and
    training differ in the last bits, and bf16 in more, from one device to another.

    Read anew each time: a run starts processes of its own, from the code that lies there then."""
    said = "\n".join(_said(file) for file in covered())
    device = (torch.cuda.get_device_name() if torch.cuda.is_available()
              else "processor with bf16" if multiplies_bf16() else "processor without bf16")
    return {"code": hashlib.sha256(said.encode()).hexdigest()[:8], "torch": torch.__version__, "device": device}


def same_numbers(made: Mapping[str, str]) -> dict[str, str]:
    """What `made_by` said, by which results of equal text can be compared: one digest stands for all `SAME_NUMBERS`."""
    return {**made, "code": next(iter(SAME_NUMBERS)) if made["code"] in SAME_NUMBERS else made["code"]}


def covered() -> list[Path]:
    """The files that the digest is of. Raises `FileNotFoundError` where a place that should have some has none."""
    package, files = Path(privfedtalk_flare.__file__).parent, []
    for place in (*(package / name for name in NUMBERS), Path(str(resources.files(CUSTOM)))):
        found = [place] if place.is_file() else list(place.rglob("*.py"))
        if not found:
            raise FileNotFoundError(f"{place}: no code here, though the digest of a run's code is to be of it")
        files += sorted(found)
    return files


def _said(file: Path) -> str:
    """A module's syntax tree as text, without strings that stand by themselves: they are documentation."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_text(line)]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
