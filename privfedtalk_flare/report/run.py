"""The sections of one run: what it made, how it went, what it promised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from privfedtalk_flare.evaluation.summary import METRICS, ROWS, Round, Summary
from privfedtalk_flare.evaluation.table import epsilon_words
from privfedtalk_flare.report.charts import lines
from privfedtalk_flare.report.measured import measured
from privfedtalk_flare.report.page import Chart, Film, Section
from privfedtalk_flare.study.tables import Table, digits, heading

FILMS = 8
"""Most samples that a page shows."""
_VIEWS = {"receivers": "receivers", "server": "server", "server_and_site": "server with a site"}


def sections_of(summary: Summary, folder: Path, weights: Path | None) -> list[Section]:
    """`folder`: where the sites' videos may lie (a simulation, a POC); `weights` as `evaluation.films.measure`."""
    films = films_in(folder)
    return [Section("Samples", films=films[:FILMS],
                    texts=[] if films else ["Videos stay at their sites; none is here."]),
            Section("Held-out clips", tables=[_rows(summary)] if summary.rows else []),
            measured({"generated": films}, weights),
            Section("Rounds", tables=[_rounds(summary.rounds)] if summary.rounds else [], charts=_curves(summary)),
            Section("Privacy", texts=epsilon_words(summary) if summary.rounds else []),
            Section("Settings and notes", texts=[_settings(summary), *summary.notes])]


def films_in(folder: Path) -> list[Film]:
    """Sample videos with the real clips beside them, wherever sites keep them under `folder`."""
    found = []
    for generated in sorted(folder.rglob("videos/*.mp4")):
        real, sheet = generated.with_suffix(".real.mp4"), generated.with_suffix(".png")
        if real.is_file():
            site = next((part for part in generated.parts if part.startswith("site-")), generated.parts[-4])
            found.append(Film(real, generated, f"{site}, person {generated.stem}", sheet if sheet.is_file() else None))
    return found


def _rows(summary: Summary) -> Table:
    known = [name for name in METRICS if any(name in metrics for metrics in summary.rows.values())]
    body = []
    for row in (row for row in ROWS if row in summary.rows):
        told = [summary.rows[row].get(name) for name in known]
        body.append([row, *("-" if one is None else f"{one['mean']:.{digits(name)}f}"
                            + (f" ± {one['std']:.{digits(name)}f}" if one["std"] is not None else "")
                            for one, name in zip(told, known, strict=True))])
    return ["", *map(heading, known)], body


def _rounds(rounds: list[Round]) -> Table:
    body = []
    for entry in rounds:
        for site, told in sorted(entry.sites.items()):
            body.append([str(entry.round), site, *(f"{told[key]:{form}}" if key in told else "-" for key, form in (
                ("weight", ".3f"), ("score", ".3f"), ("count", ".0f"), ("bytes_up", ",.0f"), ("bytes_down", ",.0f")))])
    return ["round", "site", "weight", "score", "clips", "bytes up", "bytes down"], body


def _curves(summary: Summary) -> list[Chart]:
    rounds = summary.rounds

    def by_site(key: str) -> dict[str, list[tuple[float, float]]]:
        sites = sorted({site for entry in rounds for site in entry.sites})
        return {site: [(entry.round, entry.sites[site][key]) for entry in rounds if key in entry.sites.get(site, {})]
                for site in sites}

    def of_round(value: Callable[[Round], object]) -> list[tuple[float, float]]:
        return [(entry.round, float(told)) for entry in rounds if isinstance(told := value(entry), (int, float))]

    epsilon = {words: of_round(lambda entry, view=view: entry.epsilon.get(view)) for view, words in _VIEWS.items()}
    seconds = {part: of_round(lambda entry, part=part: entry.seconds.get(part)) for part in ("wall", "aggregate")}
    charts = [Chart(lines(by_site("score"), "round", "score"), "Reliability of each site's adapter, as it travelled"),
              Chart(lines(by_site("weight"), "round", "weight"), "Weight of each site"),
              Chart(lines({name: told for name, told in epsilon.items() if told}, "round", "epsilon"),
                    "Epsilon by who is looking, over all rounds so far"),
              Chart(lines({"signal to noise": of_round(lambda entry: entry.snr)}, "round", "ratio"),
                    "Signal of a step, in its noise"),
              Chart(lines(seconds, "round", "seconds"), "Time of a round, and of the server's sum in it"),
              Chart(lines(by_site("bytes_up"), "round", "bytes"), "Bytes up, by site")]
    return [chart for chart in charts if chart.svg]


def _settings(summary: Summary) -> str:
    told = [f"{summary.wall_seconds:.0f} s, {summary.overhead_share:.0%} of it overhead"]
    told += [f"{summary.values:,} values an update"] if summary.values is not None else []
    told += [f"{summary.bytes_per_value:.1f} bytes a value up"] if summary.bytes_per_value is not None else []
    return "; ".join([*told, *(f"{name} {value}" for name, value in summary.settings.items())]) + "."


def lead(summary: Summary) -> str:
    """The run in one sentence."""
    sites = {site for entry in summary.rounds for site in entry.sites}
    people = max((int(told["n"]) for metrics in summary.rows.values() for told in metrics.values()), default=0)
    return f"{len(sites)} sites, {len(summary.rounds)} rounds of the shared adapter, {people} people measured."
