"""What a site did in a job, for its own eyes: lines of `work.jsonl` in the site's run folder. PRIVATE: under
differential privacy no loss and no time of training leaves a site."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE_NAME = "work.jsonl"
RECEIVE, PROTECT = "receive", "protect"
"""What a job's filters do: decrypt and book; clip, noise and encrypt. The other parts are its tasks, by name, that of
the backbone with the component that it trained."""


def note(folder: Path, part: str, seconds: float, round: int | None = None, losses: Iterable[float] = ()) -> None:
    """Adds a line: `part`, a filter or the task of a `round`, took so many seconds; `losses`, of people, that it
    trained to are kept as their mean, and how many of them failed (nan)."""
    losses = list(losses)
    finite = [loss for loss in losses if math.isfinite(loss)]
    told: dict[str, Any] = {"part": part, "seconds": seconds}
    if round is not None:
        told["round"] = round
    if finite:
        told["loss"] = math.fsum(finite) / len(finite)
    if failed := len(losses) - len(finite):
        told["failed"] = failed
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, f"{json.dumps(told)}\n".encode())  # one call: processes of one site take turns
    finally:
        os.close(handle)


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """The lines in a site's run folder, in the order in which they were written; none where nothing was."""
    path = folder / FILE_NAME
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
