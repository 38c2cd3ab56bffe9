"""The sections of a study: its answers, with their intervals, and the same person as each variant makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from privfedtalk_flare.report.charts import intervals
from privfedtalk_flare.report.measured import measured
from privfedtalk_flare.report.page import Chart, Film, Section
from privfedtalk_flare.report.run import films_in
from privfedtalk_flare.study.results import Estimate, Results, metrics_of
from privfedtalk_flare.study.runner import folder_of
from privfedtalk_flare.study.tables import SHOWN, differences, heading, means
from privfedtalk_flare.study.told import PAIRED, status


def sections_of(results: Results, out: Path, weights: Path | None) -> list[Section]:
    """`out`: the study's folder, with a folder for each run; `weights` as `evaluation.films.measure`."""
    study, row = results.study, results.study.row
    if not results.variants:
        return [Section("Results", texts=["Nothing has run yet."])]
    table, films = differences(results, row), _films(results, out)
    return [Section("Results", texts=[status(results)], tables=[means(results, row)]),
            Section("Differences", texts=[PAIRED] if table[1] else [], tables=[table] if table[1] else [],
                    charts=_intervals(results)),
            Section("Every metric", tables=[means(results, row, metrics_of(results, row))]),
            measured(films, weights),
            Section("Samples", texts=["The first person of the first seed, as each variant makes them."],
                    films=[replace(of[0], caption=f"{name}: {of[0].caption}") for name, of in films.items() if of]),
            Section("Runs", tables=[_runs(results)], texts=[f"{len(study.variants)} variants."])]


def _intervals(results: Results) -> list[Chart]:
    row, found = results.study.row, []
    for metric in (name for name in metrics_of(results, row) if name in SHOWN):
        told = {f"{pair.first} - {pair.second}": estimate for pair in results.study.compare if (
            estimate := results.difference(pair.first, pair.second, row, metric,
                                           pair.sites or results.good(pair.first, pair.second))) is not None}
        found.append(Chart(intervals({name: _ends(one) for name, one in told.items()}, heading(metric)),
                           f"{heading(metric)}: difference, 95 % interval; grey where it holds 0"))
    return [chart for chart in found if chart.svg]


def _ends(told: Estimate) -> tuple[float, float, float]:
    return told.mean, told.low, told.high


def _films(results: Results, out: Path) -> dict[str, list[Film]]:
    """Of each variant the films of all its runs, seed by seed."""
    return {name: [film for seed in sorted(results.runs(name))
                   for film in films_in(folder_of(out, results.study.variants[name], seed))]
            for name in results.variants}


def _runs(results: Results) -> tuple[list[str], list[list[str]]]:
    body = [[name, str(seed), f"{run['seconds']:.0f}", str(sum(len(people) for people in run["people"].values()))]
            for name in results.variants for seed, run in sorted(results.runs(name).items())]
    return ["variant", "seed", "seconds", "people"], body
