"""What a preflight finds, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from privfedtalk_flare.text import as_text

PASS, WARN, FAIL = "pass", "warn", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the table: `remedy` says what to do, "" where there is nothing to do."""

    what: str
    state: str
    told: str
    remedy: str = ""


def render(findings: Sequence[Finding], width: int) -> str:
    """The table as text."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for head in ("", "what", "found", "what to do"):
        table.add_column(head, overflow="fold")
    for one in findings:
        table.add_row(one.state, one.what, one.told, one.remedy)
    return as_text(width, table)
