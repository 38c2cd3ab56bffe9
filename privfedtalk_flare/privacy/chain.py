"""The lines of a ledger: each carries an HMAC over itself and the one before, so that none can be altered or left out.

A chain accepts any prefix of itself: that lines were cut off its end shows only against a `Head` kept elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY_BYTES = 32
GENESIS = hashlib.sha256(b"privfedtalk ledger v1").hexdigest()
"""What the first line is chained to."""
_OWN = ("line", "ledger", "previous", "hmac")


class LedgerError(ValueError):
    """A ledger that cannot be trusted, read or made. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Head:
    """How far a ledger has come: its id, the number of its lines, and the HMAC of the last (`GENESIS`: none yet)."""

    id: str
    count: int
    head: str


@dataclass(frozen=True)
class Reading:
    """A verified file: what its lines say, less the chain's own fields, and the HMAC of each.

    `text`: the lines, each with its newline. `torn`: whether more bytes follow, as a crash in the middle of writing a
    line leaves them. `whole`: whether the file is `text` and nothing else.
    """

    id: str
    bodies: tuple[dict[str, Any], ...]
    macs: tuple[str, ...]
    text: bytes
    torn: bool
    whole: bool

    @property
    def head(self) -> Head:
        return Head(self.id, len(self.macs), self.macs[-1] if self.macs else GENESIS)

    def holds(self, head: Head) -> bool:
        """Whether this ledger was once where `head` is: the same or longer, with the same lines up to there."""
        if head.id != self.id or not 0 <= head.count <= len(self.macs):
            return False
        return hmac.compare_digest(head.head, self.macs[head.count - 1] if head.count else GENESIS)


def ledger_id(key: bytes) -> str:
    """The public name of the ledger under `key`: 32 hex digits that say nothing about the key."""
    return hashlib.sha256(b"privfedtalk ledger id v1" + key).hexdigest()[:32]


def mac_of(body: Mapping[str, Any], key: bytes) -> str:
    """HMAC-SHA-256 of a JSON mapping in its canonical form, 64 hex digits."""
    return hmac.new(key, canonical(body), hashlib.sha256).hexdigest()


def canonical(body: Mapping[str, Any]) -> bytes:
    """`body` as JSON, the same bytes for the same content."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def next_line(body: Mapping[str, Any], after: Head, key: bytes) -> tuple[bytes, Head]:
    """The line that books `body` after `after`, its newline included, and the head with it."""
    whole = {**body, "line": after.count + 1, "ledger": after.id, "previous": after.head}
    mac = mac_of(whole, key)
    return canonical({**whole, "hmac": mac}) + b"\n", Head(after.id, after.count + 1, mac)


def read(path: Path, key: bytes) -> Reading:
    """Reads and verifies every line of `path`. Raises `LedgerError` on the first that does not fit.

    A last line that lacks its newline counts where its HMAC fits; where it does not, the line is torn.
    """
    own, bodies, macs, head = ledger_id(key), [], [], GENESIS
    text, torn, data = b"", False, path.read_bytes()
    *lines, tail = data.split(b"\n")
    for number, line in enumerate([*lines, tail] if tail else lines, 1):
        body = _verified(line, key, number, head)
        if body is None and number <= len(lines):
            raise LedgerError(_altered(path, line, number, own))
        if body is None:
            torn = True
            break
        head = body["hmac"]
        macs.append(head)
        bodies.append({name: value for name, value in body.items() if name not in _OWN})
        text += line + b"\n"
    return Reading(own, tuple(bodies), tuple(macs), text, torn, whole=text == data)


def _verified(line: bytes, key: bytes, number: int, previous: str) -> dict[str, Any] | None:
    """What `line` says, None where it does not fit."""
    try:
        body = json.loads(line)
        rest = {name: value for name, value in body.items() if name != "hmac"}
        good = (hmac.compare_digest(str(body["hmac"]), mac_of(rest, key)) and body["line"] == number
                and body["previous"] == previous)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return body if good else None


def _altered(path: Path, line: bytes, number: int, own: str) -> str:
    try:
        told = json.loads(line).get("ledger")
    except (ValueError, AttributeError):
        told = None
    if isinstance(told, str) and told != own:
        return (f"{path}: line {number} belongs to ledger {told[:32]!r}, this site's key to {own}: a foreign ledger or "
                "another key. Restore the ledger and the key of this site from one backup; until then it takes part "
                "in nothing")
    return (f"{path}: line {number} was altered or does not follow the one before; the privacy spent so far is "
            "unknown. Restore the file from a backup; until then this site takes part in nothing")
