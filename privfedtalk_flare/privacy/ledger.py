"""A site's privacy ledger: one line a release, reserved before training, chained so that no line can be altered.

`<state>/ledger.jsonl` spans jobs. Every line carries an HMAC over itself and its predecessor's, under
`<state>/ledger.key`. A chain accepts any prefix of itself: that lines were cut off its end shows only against an anchor
kept elsewhere; `Ledger.head` is what such an anchor (and the server) compares.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privfedtalk_flare.privacy.accountant import AccountError, Release, View, views

GENESIS = hashlib.sha256(b"privfedtalk ledger v1").hexdigest()
"""What the first line is chained to."""


class LedgerError(RuntimeError):
    """A ledger that cannot be trusted or written. The message names the file, the line and what to do."""


class BudgetExceeded(RuntimeError):  # noqa: N818  (the field's own word)
    """The next release would pass the site's epsilon_max: the site declines, nothing is trained."""


@dataclass(frozen=True)
class Entry:
    """What is booked about one release: the account's input, and which task of which job it belongs to."""

    job: str
    phase: str
    round: int
    nonce: str
    release: Release
    clip_norm: float | None
    delta: float


@dataclass(frozen=True)
class Head:
    """How far a ledger has come: the number of its lines and the HMAC of the last."""

    count: int
    head: str


class Ledger:
    """The ledger in a site's `state` folder. Opening it verifies the whole chain; an altered line is an error."""

    def __init__(self, state: Path) -> None:
        self.path = state / "ledger.jsonl"
        self._key_path = state / "ledger.key"
        self._lock_path = state / "ledger.lock"
        state.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._key = self._load_key()
            self._entries, self._head = self._read()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every release booked so far, as of the last reading."""
        return tuple(self._entries)

    @property
    def head(self) -> Head:
        """Count and HMAC of the last line, for anchors: here, in another folder, at the server."""
        return Head(len(self._entries), self._head)

    def reserve(self, entry: Entry, epsilon_max: float | None, **view: bool) -> dict[str, View]:
        """Books `entry` and returns epsilon by view with it included. Called before training; what fails later stays
        spent. Check and write happen under one file lock, and the line is on disk (fsync) when this returns.

        `epsilon_max` bounds the largest view over all lines; above it nothing is written and `BudgetExceeded` is
        raised. `view` goes to `accountant.views`.
        """
        with self._locked():
            self._entries, self._head = self._read()  # another process may have written since
            after = self._views([*self._entries, entry], entry.delta, **view)
            worst = max(v.epsilon for v in after.values())
            if epsilon_max is not None and worst > epsilon_max:
                raise BudgetExceeded(f"the next release would bring epsilon to {worst:.4g} at delta {entry.delta:g}, "
                                     f"above this site's epsilon_max {epsilon_max:g}; nothing was trained or sent")
            line = self._line(len(self._entries) + 1, entry)
            new = not self.path.exists()
            with self.path.open("ab") as file:
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if new:
                _sync_folder(self.path.parent)
            self._entries.append(entry)
            self._head = json.loads(line)["hmac"]
            return after

    def epsilon(self, delta: float, *, job: str | None = None, **view: bool) -> dict[str, View]:
        """Epsilon so far by view over all lines, or over those of one job."""
        return self._views([e for e in self._entries if job in (None, e.job)], delta, **view)

    @staticmethod
    def _views(entries: list[Entry], delta: float, **view: bool) -> dict[str, View]:
        return views([e.release for e in entries], delta, **view)

    def _line(self, number: int, entry: Entry) -> bytes:
        body = {"line": number, "time": round(time.time(), 3), "previous": self._head, **asdict(entry)}
        return _canonical({**body, "hmac": self._mac(body)})

    def _mac(self, body: dict[str, Any]) -> str:
        return hmac.new(self._key, _canonical(body), hashlib.sha256).hexdigest()

    def _read(self) -> tuple[list[Entry], str]:
        entries: list[Entry] = []
        head = GENESIS
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                body = json.loads(line)
                mac = body.pop("hmac")
                good = (line.endswith(b"\n") and hmac.compare_digest(str(mac), self._mac(body))
                        and body["previous"] == head and body["line"] == number)
                if not good:
                    raise LedgerError
                fields = {k: v for k, v in body.items() if k not in ("line", "time", "previous")}
                entries.append(Entry(**{**fields, "release": Release(**fields["release"])}))
            except (LedgerError, AccountError, ValueError, KeyError, TypeError, AttributeError):
                raise LedgerError(f"{self.path}: line {number} was altered, torn or does not follow the one before; "
                                  "the privacy spent so far is unknown. Restore the file from a backup; until then "
                                  "this site takes part in nothing") from None
            head = mac
        return entries, head

    def _load_key(self) -> bytes:
        if self._key_path.exists():
            key = self._key_path.read_bytes()
            if len(key) != 32:
                raise LedgerError(f"{self._key_path}: {len(key)} bytes, a ledger key has 32; restore it from a backup")
            return key
        if self.path.exists() and self.path.stat().st_size:
            raise LedgerError(f"{self._key_path} is missing but {self.path} has lines, which cannot be verified; "
                              "restore the key from a backup")
        # Seam: `privfedtalk privacy init` will create key and anchor, and a missing one will stop the site.
        key = secrets.token_bytes(32)
        descriptor = os.open(self._key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self._key_path.parent)
        return key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock_path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
