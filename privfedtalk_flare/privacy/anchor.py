"""The anchor of a ledger: how far it had come, kept in another folder, so that a shortened ledger is noticed.

The ledger is written first and the anchor after it. A crash between the two leaves a ledger that is ahead of its
anchor, which is fine: nothing trains before both are on disk, and the next release catches up. A ledger that is behind
its anchor was cut, replaced, or restored from a backup that is too old.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import asdict
from pathlib import Path

from privfedtalk_flare.files import write_whole
from privfedtalk_flare.privacy.chain import Head, LedgerError, Reading, canonical, mac_of


def write_anchor(path: Path, head: Head, key: bytes) -> None:
    """Replaces the anchor by `head`, with an HMAC of its own, so that nobody without the key can make an older one."""
    told = asdict(head)
    write_whole(path, canonical({**told, "hmac": mac_of(told, key)}) + b"\n")


def read_anchor(path: Path, key: bytes) -> Head:
    """The head that the anchor at `path` holds. Raises `LedgerError` where it was altered or is another ledger's."""
    try:
        told = json.loads(path.read_bytes())
        mac = told.pop("hmac")
        head = Head(**told)
        good = hmac.compare_digest(str(mac), mac_of(told, key))
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise LedgerError(f"{path}: this anchor was altered, torn, or belongs to another key than this site's ledger; "
                          "restore it from a backup of this site. Until then it takes part in nothing")
    return head


def check_anchor(reading: Reading, anchor: Head, ledger: Path, path: Path) -> None:
    """Raises `LedgerError` where the ledger that was read is not at `anchor` or beyond it."""
    if not reading.holds(anchor):
        raise LedgerError(f"{ledger}: {releases(reading.head.count)}, but its anchor {path} was made after "
                          f"{releases(anchor.count)} with another end: lines were cut off or replaced. Restore the "
                          "newest ledger from a backup (the anchor stays as it is); until then this site takes part "
                          "in nothing")


def releases(count: int) -> str:
    """`count` releases, in words."""
    return "1 release" if count == 1 else f"{count} releases"
