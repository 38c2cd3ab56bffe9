"""A study told in Markdown: its question, its tables, what was run."""

from __future__ import annotations

from privfedtalk_flare.study.results import Results
from privfedtalk_flare.study.tables import as_markdown, differences, means, rounds

PAIRED = ("Differences paired by person, of the sites that a line names or else of all undamaged ones, with their "
          "95 % interval: over runs, each with people of its own; where there is one run, over its people, which says "
          "nothing of other runs. Bold: several runs, and the interval leaves out 0; nothing is corrected for how many "
          "intervals there are, so one in twenty does by chance. Never bold: runs that other code or another kind of "
          "machine made.")

ROUNDS = ("How sites were weighed, what that promised and what it moved: means over a variant's sites and rounds, "
          "damaged sites apart; epsilon after the last round, for whoever holds the decrypted adapter (receiv), for "
          "the server, and for both, the server together with a site. A run's own page has it round by round.")


def status(results: Results) -> str:
    """How much of the study has run, and what its numbers are."""
    done, study = sum(len(results.runs(name)) for name in results.variants), results.study
    minutes = sum(run["seconds"] for name in results.variants for run in results.runs(name).values()) / 60
    days = " to ".join(dict.fromkeys((results.days[0], results.days[-1]))) if results.days else ""
    made = f" on {days}, by {'; and by '.join(results.makers)}" if days else ""
    return (f"{done} of {len(study.runs)} runs of study {study.name}, {minutes:.0f} min{made}; held-out clips, "
            f"row {study.row}; mean over the people of undamaged sites and half its 95 % interval, over runs where "
            "there are several, else over people. Do not compare lines of different people; use the differences below. "
            "What a metric could gain is ground_truth less backbone.")


def as_text(results: Results) -> str:
    """The whole study, as Markdown."""
    study = results.study
    parts = [f"## {study.name}", study.question.strip(), status(results)]
    if results.variants:
        parts.append(as_markdown(means(results)))
    for words, table in ((PAIRED, differences(results)), (ROUNDS, rounds(results))):
        if table[1]:
            parts += [words, as_markdown(table)]
    return "\n\n".join(parts) + "\n"
