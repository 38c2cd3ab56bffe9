"""The server's echo: it keeps where each site's ledger stood, over all jobs, and says so in every task.

A site whose ledger and anchor were both taken back still finds out: a release that the server has seen is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from privfedtalk_flare.files import locked, write_whole
from privfedtalk_flare.privacy.chain import Head, LedgerError, Reading

FILE_NAME = "ledgers.json"


class EchoBook:
    """The server's side: the farthest head of each site, as `ledgers.json` in the server's `state`.

    Nothing is kept in memory, as two jobs of one server may run at once.
    """

    def __init__(self, state: Path) -> None:
        self.path = state / FILE_NAME

    def told(self, sites: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What a task to `sites` echoes: site -> {id, count, head}, without those never heard of."""
        kept = self._read()
        return {site: asdict(kept[site]) for site in sites if site in kept}

    def remember(self, site: str, told: Mapping[str, Any]) -> str:
        """Keeps `told`, the {id, count, head} of a reply, and returns "", or why it does not follow what was kept.

        A smaller count is no fault: two jobs at one site may answer in another order than they booked. What does not
        follow is not kept, so the site hears of it with its next task.
        """
        head = Head(**told)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_name("ledgers.lock")):
            kept = self._read()
            before = kept.get(site)
            if before is not None and before.id != head.id:
                return (f"its ledger {head.id} is another one than the {before.id} that it had; if that is as it "
                        f"should be, remove {site} from {self.path}")
            if before is not None and before.count == head.count and before.head != head.head:
                return f"its ledger says something else about release {head.count} than it did before"
            if before is None or before.count < head.count:
                kept[site] = head
                self._write(kept)
        return ""

    def _read(self) -> dict[str, Head]:
        if not self.path.exists():
            return {}
        try:
            return {site: Head(**told) for site, told in json.loads(self.path.read_bytes()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise LedgerError(f"{self.path}: not what this server wrote ({error}); restore it from a backup, or move "
                              "it away to forget where every site's ledger stood") from error

    def _write(self, heads: Mapping[str, Head]) -> None:
        content = {site: asdict(head) for site, head in sorted(heads.items())}
        write_whole(self.path, json.dumps(content, indent=2).encode() + b"\n")


def check_echo(reading: Reading, echo: Head, ledger: Path) -> None:
    """Raises `LedgerError` where the site's ledger, as read, is not at the server's `echo` or beyond it."""
    if echo.id != reading.id:
        raise LedgerError(f"{ledger}: this is ledger {reading.id}, but the server knows this site by ledger {echo.id}: "
                          "a foreign ledger, or one that was made anew. Restore the site's own with its key and anchor "
                          "from a backup; if it was made anew for people who never took part before, ask the server's "
                          f"operator to remove this site from {FILE_NAME}. Until then it takes part in nothing")
    if not reading.holds(echo):
        raise LedgerError(f"{ledger}: {reading.head.count} releases, but the server has seen release {echo.count} of "
                          "this site, which is not among them: ledger and anchor were taken back or replaced. Restore "
                          "the newest ledger and anchor from a backup; until then this site takes part in nothing")
