"""The README's commands, as a person copies them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from deployment import ROOT


def commands(heading: str, replace: Mapping[str, str]) -> list[str]:
    """The code blocks under a heading of the README, in order, their placeholders replaced. Each must be there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    blocks = [textwrap.dedent(block.partition("\n")[2]) for block in section.split("```")[1::2]]
    assert blocks, f"no code under {heading!r}"
    for old in replace:
        assert any(old in block for block in blocks), f"{old!r} is not under {heading!r}"
    for old, new in replace.items():
        blocks = [block.replace(old, new) for block in blocks]
    return blocks
