"""A run's summary as text for a terminal: one table of rows by metrics, one of rounds, and the words about epsilon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from privfedtalk_flare.evaluation.summary import METRICS, ROWS, UNBOUNDED, Round, Rows, Summary, digits
from privfedtalk_flare.snr import known_snr
from privfedtalk_flare.text import as_text

_MISSING = "-"
_SHOWN = [name for name in METRICS if name not in ("warp", "jitter_ratio")]
"""What has room in 80 columns; a report has all."""
VIEWS = {"receivers": "receiv", "server": "server", "server_and_site": "both"}
"""Who is looking, with the head of their column; `epsilon_words` explains it."""


def render(summary: Summary, width: int = 100) -> str:
    """The whole summary, `width` columns wide at most, without colour."""
    parts: list[Table | str] = [*(_rows_and_words(summary.rows) if summary.rows else [])]
    if summary.rounds:
        parts += [_rounds(summary), *epsilon_words(summary)]
    parts.append(totals(summary))
    for head, lines in (("videos", summary.videos), ("adapters", summary.adapters), ("notes", summary.notes)):
        parts += [f"{head}: {line}" for line in lines]
    return as_text(width, *parts)


def rows_table(rows: Rows, width: int) -> str:
    """The rows by metrics alone, as text."""
    return as_text(width, *_rows_and_words(rows))


def _rows_and_words(rows: Rows) -> list[Table | str]:
    return [_rows(rows), f"Mean over {people(rows)} people, standard deviation below."]


def people(rows: Rows) -> int:
    """How many people were measured."""
    return max((int(told["n"]) for metrics in rows.values() for told in metrics.values()), default=0)


def _table(title: str) -> Table:
    return Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False, title_justify="left")


def _rows(rows: Rows) -> Table:
    table = _table("Held-out clips")
    table.add_column("row", no_wrap=True)
    for name in _SHOWN:
        table.add_column(METRICS[name], justify="right", no_wrap=True)
    for row, cells in row_lines(rows, _SHOWN):
        table.add_row(row, *("\n".join(parts) for parts in cells))
    return table


def row_lines(rows: Rows, metrics: Sequence[str]) -> list[tuple[str, list[list[str]]]]:
    """A line a row: its name, then for each metric mean, standard deviation if known, and the number of people where
    fewer than were measured have a value; "-" alone where there is none.

    >>> row_lines({"shared": {"sync": {"mean": 0.5, "std": 0.25, "n": 3}}}, ["sync", "warp"])
    [('shared', [['0.500', '0.250'], ['-']])]
    """
    count = people(rows)
    return [(row, [_cell(rows[row].get(name), digits(name), count) for name in metrics])
            for row in ROWS if row in rows]


def _cell(told: Mapping[str, float | None] | None, decimals: int, count: int) -> list[str]:
    if told is None:
        return [_MISSING]
    spread = [f"{told['std']:.{decimals}f}"] if told["std"] is not None else []
    return [f"{told['mean']:.{decimals}f}", *spread, *([f"n={told['n']:.0f}"] if told["n"] < count else [])]


def _rounds(summary: Summary) -> Table:
    table = _table("Rounds of the shared adapter")
    for head in ROUND_HEADS:
        site = head == "site"
        table.add_column(head, justify="left" if site else "right", no_wrap=not site, overflow="fold")
    for cells in round_lines(summary.rounds, summary.values):
        table.add_row(*cells)
    return table


ROUND_HEADS = ("round", "site", "weight", "score", "clips", "MB\nup", "MB\ndown",
               *(f"eps\n{name}" for name in VIEWS.values()), "SNR", "wall\ns", "sum\ns")


def round_lines(rounds: Sequence[Round], values: int | None) -> list[list[str]]:
    """The cells below `ROUND_HEADS`: one line a site; what holds for the round stands in its first line. `values`: of
    an update, as far as known."""
    lines = []
    for entry in rounds:
        whole = [*(number(entry.epsilon.get(view), ".2f") for view in VIEWS), _snr(entry.snr, values),
                 number(entry.seconds.get("wall"), ".1f"), number(entry.seconds.get("aggregate"), ".2f")]
        for i, (site, told) in enumerate(sorted(entry.sites.items())):
            moved = [told[key] / 1e6 if key in told else None for key in ("bytes_up", "bytes_down")]
            lines.append([str(entry.round) if i == 0 else "", site, number(told.get("weight"), ".3f"),
                          number(told.get("score"), ".3f"), number(told.get("count"), ".0f"),
                          *(number(value, ".2f") for value in moved), *(whole if i == 0 else [""] * len(whole))])
    return lines


def _snr(estimate: float | None, values: int | None) -> str:
    """The estimate where it says something, or what it is below (`known_snr`)."""
    if estimate is None or values is None:
        return number(estimate, ".2f")
    ratio, most = known_snr(estimate, math.inf, values)
    return f"{'<' if most else ''}{ratio:.2f}"


def number(value: float | str | None, form: str) -> str:
    """A number in `form`, "inf" for an epsilon without bound, "-" where nothing is known."""
    if value is None:
        return _MISSING
    return "inf" if value == UNBOUNDED else format(value, form)


def epsilon_words(summary: Summary) -> list[str]:
    """What the last round's epsilon covers; its own words say what not (accountant.View)."""
    last = summary.rounds[-1]
    stated = {view: value for view, value in last.epsilon.items() if value is not None}
    if not stated:
        return ["No differential privacy: no epsilon is promised to anyone."]
    lines = []
    if UNBOUNDED in stated.values():
        lines.append("inf: unbounded, in that view no epsilon is promised.")
    if any(value != UNBOUNDED for value in stated.values()):
        lines.append(f"Epsilon (at delta {last.delta:g}) is for one identity's part in all rounds so far. receiv: "
                     "whoever holds the decrypted adapter; server: the server alone, which is sent metrics of it; "
                     "both: the server together with a site.")
    return [*lines, last.words] if last.words else lines


def totals(summary: Summary) -> str:
    """The whole run's time, size of an update, and settings, on one line."""
    parts = [f"{summary.wall_seconds:.0f} s, {summary.overhead_share:.0%} of it overhead"]
    if summary.values is not None:
        parts.append(f"{summary.values:,} values an update")
    if summary.bytes_per_value is not None:
        parts.append(f"{summary.bytes_per_value:.1f} bytes a value up")
    return "; ".join(parts + [f"{name} {value}" for name, value in summary.settings.items()])
