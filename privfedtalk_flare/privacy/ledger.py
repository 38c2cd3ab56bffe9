"""A site's privacy ledger: one line a release, reserved before training, for all jobs that its people take part in.

`<state>/ledger.jsonl` is chained (chain.py) under a key in the site's `local/`; an anchor in another folder (anchor.py)
and the server's echo (echo.py) notice when it was taken back. Whatever does not fit stops the site.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from privfedtalk_flare.files import locked, write_whole
from privfedtalk_flare.privacy.accountant import Release, View, views
from privfedtalk_flare.privacy.anchor import check_anchor, read_anchor, write_anchor
from privfedtalk_flare.privacy.chain import GENESIS, Head, LedgerError, next_line, read
from privfedtalk_flare.privacy.echo import check_echo
from privfedtalk_flare.privacy.gaussian import AccountError
from privfedtalk_flare.privacy.opening import LedgerFiles, NoLedger, read_key, sync_folder

__all__ = ["GENESIS", "TORN", "Budget", "BudgetExceeded", "Entry", "Head", "Ledger", "LedgerError", "NoLedger"]

TORN = "(torn line)"
"""The job of an entry that stands for a line which a crash tore."""


class BudgetExceeded(RuntimeError):  # noqa: N818  (the field's own word)
    """The next release would pass an epsilon_max: the site declines, nothing is trained."""


@dataclass(frozen=True)
class Entry:
    """What is booked about one release: the account's input, and which task of which job it belongs to.

    `clip_norm` (C) bounds one `unit`'s update; among a site's m identities the sensitivity is C / m. `trust`: who adds
    the noise, `local`: the site alone, so that the promise holds against everyone.
    """

    job: str
    phase: str
    round: int
    nonce: str
    release: Release
    clip_norm: float | None
    delta: float
    unit: str = "identity"
    trust: str = "local"


@dataclass(frozen=True)
class Budget:
    """The largest epsilon, at `delta`, to which all releases together may bring any view; `of` says whose rule it is.
    """

    epsilon_max: float
    delta: float
    of: str


class Ledger:
    """The ledger in a site's `state` folder. Opening it verifies the whole chain against its anchor.

    `local` and `anchor` are as in `LedgerFiles.of`. Raises `NoLedger` where ledger, key or anchor is missing, and
    `LedgerError` where one was altered or the ledger is behind its anchor.
    """

    def __init__(self, state: Path, local: Path | None = None, anchor: Path | None = None) -> None:
        self.files = LedgerFiles.of(state, local, anchor)
        if not self.files.lock.parent.is_dir():
            read_key(self.files)
        with locked(self.files.lock):
            self._open()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every release booked so far, as of the last reading."""
        return tuple(self._entries)

    @property
    def times(self) -> tuple[float, ...]:
        """When each was booked, in seconds since the epoch."""
        return tuple(float(body["time"]) for body in self._reading.bodies)

    @property
    def head(self) -> Head:
        """Id, count and HMAC of the last line, for anchors: here, in another folder, at the server."""
        return self._reading.head

    @property
    def torn(self) -> bool:
        """Whether a crash left part of a line at the end, which the next booking charges."""
        return self._reading.torn

    def reserve(self, entry: Entry, *budgets: Budget, echo: Head | None = None) -> dict[str, View]:
        """Books `entry` and returns epsilon by view with it included. Called before training; what fails later stays
        spent. Check and write happen under one file lock; ledger and anchor are on disk (fsync) when this returns.

        Each of `budgets` bounds the largest view over all lines; above one nothing is written and `BudgetExceeded` is
        raised. `echo` is where the server last saw this ledger; `LedgerError` where the ledger is not there or beyond.

        A line that a crash tore is charged as one more release like `entry`. Nothing was released under it: training
        begins after line and anchor are on disk, and a line torn later is behind the anchor.
        """
        with locked(self.files.lock):
            self._open()  # another process may have written since
            if echo is not None:
                check_echo(self._reading, echo, self.files.ledger)
            new = [entry]
            if self.torn:
                new.insert(0, replace(entry, job=TORN, nonce=""))
            after = [*self._entries, *new]
            for budget in budgets:
                _check(budget, self._views(after, budget.delta))
            told = self._views(after, entry.delta)
            self._append(new)
            return told

    def epsilon(self, delta: float, *, job: str | None = None) -> dict[str, View]:
        """Epsilon so far by view over all lines, or over those of one job."""
        return self._views([e for e in self._entries if job in (None, e.job)], delta)

    def views_so_far(self, delta: float) -> list[dict[str, View]]:
        """Epsilon by view after each line, of all lines up to it; where people were sampled, an upper bound that is
        quickly made for all but the last, and never above the last: more lines never cost less."""
        releases = [entry.release for entry in self._entries]
        whole = views(releases, delta)
        earlier = [views(releases[:number], delta, tight=False) for number in range(1, len(releases))]
        bounded = [{name: replace(view, epsilon=min(view.epsilon, whole[name].epsilon))
                    for name, view in told.items()} for told in earlier]
        return [*bounded, whole] if releases else []

    def _open(self) -> None:
        self._key = read_key(self.files)
        self._reading = read(self.files.ledger, self._key)
        check_anchor(self._reading, read_anchor(self.files.anchor, self._key), self.files.ledger, self.files.anchor)
        self._entries = [_entry(self.files.ledger, number, body)
                         for number, body in enumerate(self._reading.bodies, 1)]

    def _append(self, entries: Sequence[Entry]) -> None:
        """The line first, the anchor after it: see anchor.py."""
        head, new = self._reading.head, b""
        for entry in entries:
            line, head = next_line({"time": round(time.time(), 3), **asdict(entry)}, head, self._key)
            new += line
        path = self.files.ledger
        if self._reading.whole:
            with path.open("ab") as file:
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
        else:
            write_whole(path, self._reading.text + new)
            sync_folder(path.parent)
        write_anchor(self.files.anchor, head, self._key)
        self._open()

    @staticmethod
    def _views(entries: Sequence[Entry], delta: float) -> dict[str, View]:
        return views([e.release for e in entries], delta)


def _entry(path: Path, number: int, body: Mapping[str, Any]) -> Entry:
    fields = {name: value for name, value in body.items() if name != "time"}
    try:
        return Entry(**{**fields, "release": Release(**fields["release"])})
    except (AccountError, KeyError, TypeError) as error:
        raise LedgerError(f"{path}: line {number} is this site's own, but this version of the package cannot read it "
                          f"({error}); run the version that wrote it, or a newer one") from error


def _check(budget: Budget, after: Mapping[str, View]) -> None:
    worst = max(view.epsilon for view in after.values())
    if worst > budget.epsilon_max:
        raise BudgetExceeded(f"the next release would bring epsilon to {worst:.4g} at delta {budget.delta:g}, above "
                             f"the epsilon_max {budget.epsilon_max:g} of {budget.of}; nothing was trained or sent")
