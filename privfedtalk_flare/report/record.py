"""Keeps what studies found in a Markdown file, `RESULTS.md`, each with a picture of its differences beside it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from privfedtalk_flare.files import READABLE, write_whole
from privfedtalk_flare.report.charts import standalone
from privfedtalk_flare.report.study import differing
from privfedtalk_flare.study.results import Results
from privfedtalk_flare.study.told import as_text

FIGURE = "psnr_mask"
"""The metric that a study's picture shows."""


def record(results: Results, path: Path, called: str) -> Path:
    """Writes the study into the Markdown file `path`, in place of what it said of it before; other studies stay. Its
    picture lies beside `path`. `called`: the study's name or file, as `privfedtalk study` was given it."""
    study = results.study.name
    begin, end = (f"<!-- {word} of study {study} -->" for word in ("begin", "end"))
    before = path.read_text(encoding="utf-8") if path.is_file() else _HEAD
    again = shlex.join(["privfedtalk", "study", called, "--record", str(path)])
    told = (f"{begin}\n\n{as_text(results)}\n{_figure(results, path)}"
            f"`{again}`\n\n{end}")
    there = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    whole = there.sub(lambda _: told, before) if there.search(before) else f"{before.rstrip()}\n\n{told}"
    return write_whole(path, f"{whole.rstrip()}\n".encode(), READABLE)


def _figure(results: Results, path: Path) -> str:
    chart = differing(results, FIGURE)
    if not chart.svg:
        return ""
    name = f"{results.study.name}.svg"
    write_whole(path.with_name(name), standalone(chart.svg).encode(), READABLE)
    return f"![{chart.caption}]({name})\n\n{chart.caption}.\n\n"


_HEAD = """# Results of the studies

Written by `privfedtalk study`, not by hand. People are rendered; every number is of held-out clips."""
