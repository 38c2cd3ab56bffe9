"""What a run leaves on the server: its rounds, rows and times as `summary.json`, and the state of the last round."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from privfedtalk_flare.evaluation.summary import (
    FILE_NAME,
    UNBOUNDED,
    Round,
    Rows,
    Summary,
    overhead_share,
    pool_rows,
    save_summary,
)
from privfedtalk_flare.files import write_whole
from privfedtalk_flare.flare.scalars import number
from privfedtalk_flare.privacy.accountant import VIEWS


@dataclass
class RunRecord:
    """Collects a run as it goes, and writes it as `summary.json`.

    `started`: seconds since the epoch at which the job's process began, so that imports count into the wall time.
    `settings`: what the job ran with, as the summary shows it.
    """

    started: float
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    site_rows: dict[str, Rows] = field(default_factory=dict)
    videos: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: int | None = None
    intervals: list[tuple[float, float]] = field(default_factory=list)

    def worked(self, intervals: object) -> None:
        """Adds a site's busy intervals [[start, end], ...], cut to the run's own time; malformed ones are left out."""
        now = time.time()
        for pair in intervals if isinstance(intervals, (list, tuple)) else ():
            if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(number(t) for t in pair):
                start, end = max(float(pair[0]), self.started), min(float(pair[1]), now)
                if start < end:
                    self.intervals.append((start, end))

    def summary(self) -> Summary:
        """The run so far."""
        wall = time.time() - self.started
        sent = [told["bytes_up"] for entry in self.rounds for told in entry.sites.values()]
        return Summary(rows=pool_rows(self.site_rows.values()), rounds=list(self.rounds), values=self.values,
                       bytes_per_value=max(sent) / self.values if sent and self.values else None, wall_seconds=wall,
                       overhead_share=overhead_share(self.intervals, wall), videos=list(self.videos),
                       adapters=list(self.adapters), settings=dict(self.settings), notes=list(self.notes))

    def write(self, folder: Path) -> Path:
        """Writes `summary.json` into `folder` by atomic replace."""
        return save_summary(self.summary(), folder / FILE_NAME)


def worst_epsilon(epsilons: Iterable[Mapping[str, Any] | None]) -> dict[str, float | str | None]:
    """By view, the largest epsilon of any site: a number, "unbounded", or None where no site said one."""
    worst: dict[str, float | str | None] = dict.fromkeys(VIEWS)
    for views in epsilons:
        for view, value in (views or {}).items():
            if view not in worst or worst[view] == UNBOUNDED:
                continue
            if value == UNBOUNDED or (number(value) and (worst[view] is None or value > worst[view])):
                worst[view] = value
    return worst


def shown_sites(stats: Mapping[str, Mapping[str, Any]], bytes_down: int, mode: str) -> dict[str, dict[str, float]]:
    """A round's sites as the summary shows them, from the aggregator's `stats`, less what `mode` keeps secret."""
    shown = ("bytes_up", "bytes_down") if mode == "sealed" else ("weight", "score", "count", "bytes_up", "bytes_down")
    return {site: {key: told[key] for key in shown if told.get(key) is not None}
            for site, told in ((site, {**told, "bytes_down": bytes_down}) for site, told in stats.items())}


def save_round(path: Path, theta: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
    """Writes the adapter as the server has it (ciphertext chunks, name -> (bytes,) uint8) and `state`, which is JSON,
    as one file, by atomic replace: after a crash it holds the last whole round.
    """
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(chunk) for name, chunk in theta.items()}
    return write_whole(path, save(tensors, metadata={"state": json.dumps(dict(state))}))


def read_round(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(theta as the server has it, state) of a file that `save_round` wrote. Raises ValueError where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118  (it is no mapping)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no round of the shared adapter ({type(error).__name__}: {error}); the server "
                         "writes them into `rounds` of its state") from error
