"""Where a site's ledger, its key and its anchor lie, and how the three are made: once, by `privfedtalk privacy init`.

A site without them spends privacy that nobody counts, so a missing one stops it and is never made on the way; only a
simulated site makes its own.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from privfedtalk_flare.files import locked
from privfedtalk_flare.privacy.anchor import write_anchor
from privfedtalk_flare.privacy.chain import GENESIS, KEY_BYTES, Head, LedgerError, ledger_id

INIT = "`privfedtalk privacy init WORKSPACE`"
_RESTORE = ("Restore {missing} from a backup. Where there is none, what was spent on this site's people is unknown, "
            f"and they must take part in nothing more; for other people, move what is left away and run {INIT}")


class NoLedger(LedgerError):  # noqa: N818  (a state: answered by a status of its own)
    """A site whose ledger, key or anchor is missing."""


@dataclass(frozen=True)
class LedgerFiles:
    """The three files, and the lock that guards them."""

    ledger: Path
    key: Path
    anchor: Path

    @classmethod
    def of(cls, state: Path, local: Path | None = None, anchor: Path | None = None) -> LedgerFiles:
        """`local`: folder of the key, the site's `local/`; default: `<state>/local`, where a simulated site has its
        own. `anchor`: folder of the anchor, default beside the key. Raises `LedgerError` where it is the ledger's.
        """
        local = local if local is not None else state / "local"
        anchor = anchor if anchor is not None else local
        if state.resolve() in (anchor.resolve(), local.resolve()):
            raise LedgerError(f"{state} holds the ledger, so its key and its anchor must lie in another folder: change "
                              "`state` or `anchor` in this site's privfedtalk.yaml")
        return cls(state / "ledger.jsonl", local / "ledger.key", anchor / "ledger.anchor")

    @property
    def lock(self) -> Path:
        return self.ledger.with_name("ledger.lock")

    @property
    def all(self) -> tuple[Path, ...]:
        return self.ledger, self.key, self.anchor


def create(files: LedgerFiles) -> Head:
    """Makes an empty ledger with a key and an anchor, all on disk when this returns. Returns its head.

    Raises `LedgerError` where any of the three is there already: what was booked is never started anew.
    """
    _make_folders(files)
    with locked(files.lock):
        missing = [path for path in files.all if not path.exists()]
        if not missing:
            raise LedgerError(f"{files.ledger}: this site has its ledger, key and anchor already, and a ledger is "
                              "never started anew; `privfedtalk privacy show WORKSPACE` prints it")
        if len(missing) < len(files.all):
            there = _named([path for path in files.all if path not in missing])
            raise LedgerError(f"{there}: there already, so this site had a ledger, and it is never started anew. "
                              + _RESTORE.format(missing=_named(missing)))
        return _make(files)


def create_once(files: LedgerFiles) -> None:
    """The same for a simulated site, at first use: where any of the three is there, it makes none of them."""
    _make_folders(files)
    with locked(files.lock):
        if not any(path.exists() for path in files.all):
            _make(files)


def read_key(files: LedgerFiles) -> bytes:
    """The ledger's key. Raises `NoLedger` unless all three files are there."""
    missing = [path for path in files.all if not path.is_file()]
    if len(missing) == len(files.all):
        raise NoLedger(f"{files.ledger}: this site has no privacy ledger; run {INIT} once, before its first job. If it "
                       "had one, restore ledger, key and anchor from a backup instead")
    if missing:
        raise NoLedger(f"{_named(missing)}: missing, but the rest of this site's privacy ledger is there. "
                       + _RESTORE.format(missing=_named(missing)))
    key = files.key.read_bytes()
    if len(key) != KEY_BYTES:
        raise LedgerError(f"{files.key}: {len(key)} bytes, a ledger key has {KEY_BYTES}; restore it from a backup")
    return key


def sync_folder(folder: Path) -> None:
    """Puts new names in `folder` on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(files: LedgerFiles) -> None:
    for path in files.all:
        path.parent.mkdir(parents=True, exist_ok=True)


def _make(files: LedgerFiles) -> Head:
    key = secrets.token_bytes(KEY_BYTES)
    head = Head(ledger_id(key), 0, GENESIS)
    _write_new(files.key, key)
    _write_new(files.ledger, b"")
    write_anchor(files.anchor, head, key)
    for path in files.all:
        sync_folder(path.parent)
    return head


def _named(paths: list[Path]) -> str:
    return " and ".join(map(str, paths))


def _write_new(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
