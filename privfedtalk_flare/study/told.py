"""A study told in Markdown: its question, its tables, what was run. `RESULTS.md` is made of these."""

from __future__ import annotations

from privfedtalk_flare.study.results import Results
from privfedtalk_flare.study.tables import as_markdown, differences, means


def as_text(results: Results) -> str:
    """The whole study, as Markdown."""
    study = results.study
    done = sum(len(results.runs(name)) for name in results.variants)
    parts = [f"## {study.name}", study.question.strip(),
             f"`privfedtalk study {study.name}`: {done} of {len(study.runs)} runs; held-out clips, row `{study.row}`; "
             "mean over people and half its 95 % interval."]
    if results.variants:
        parts.append(as_markdown(means(results, study.row)))
    table = differences(results, study.row)
    if table[1]:
        parts += ["Differences paired by person, people of undamaged sites alone, with their 95 % interval; bold: the "
                  "interval leaves out 0 and every seed says the same.", as_markdown(table)]
    return "\n\n".join(parts) + "\n"
