"""Tables and words as text for a terminal, a log or a test: no colour, no trailing blanks."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console


def as_text(width: int, *parts: Any) -> str:
    """What rich makes of `parts`, tables or sentences, one below the other, `width` columns wide at most."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    for part in parts:
        console.print(part, markup=False)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
