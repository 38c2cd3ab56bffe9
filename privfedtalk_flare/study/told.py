"""A study told in Markdown: its question, its tables, what was run. `RESULTS.md` is made of these."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from privfedtalk_flare.files import READABLE, write_whole
from privfedtalk_flare.study.results import Results
from privfedtalk_flare.study.tables import as_markdown, differences, means

PAIRED = ("Differences paired by person, people of undamaged sites alone, with their 95 % interval; bold: the interval "
          "leaves out 0 and every seed says the same.")


def status(results: Results) -> str:
    """How much of the study has run, and what its numbers are."""
    done, study = sum(len(results.runs(name)) for name in results.variants), results.study
    return (f"{done} of {len(study.runs)} runs of study {study.name}; held-out clips, row {study.row}; "
            "mean over people and half its 95 % interval.")


def as_text(results: Results) -> str:
    """The whole study, as Markdown."""
    study = results.study
    parts = [f"## {study.name}", study.question.strip(), status(results)]
    if results.variants:
        parts.append(as_markdown(means(results, study.row)))
    table = differences(results, study.row)
    if table[1]:
        parts += [PAIRED, as_markdown(table)]
    return "\n\n".join(parts) + "\n"


def record(results: Results, path: Path, today: date) -> Path:
    """Writes the study into the Markdown file `path`, in place of what it said of it before; other studies stay."""
    begin, end = (f"<!-- {word} of study {results.study.name} -->" for word in ("begin", "end"))
    before = path.read_text(encoding="utf-8") if path.is_file() else _HEAD
    told = (f"{begin}\n\n{as_text(results)}\n`privfedtalk study {results.study.name} --record {path.name}`, "
            f"{today.isoformat()}.\n\n{end}")
    there = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    whole = there.sub(lambda _: told, before) if there.search(before) else f"{before.rstrip()}\n\n{told}"
    return write_whole(path, f"{whole.rstrip()}\n".encode(), READABLE)


_HEAD = """# Results of the studies

Written by `privfedtalk study`, not by hand. People are rendered; every number is of held-out clips."""
