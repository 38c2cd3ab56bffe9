"""The sections of a study: its answers, with their intervals, and the same person as each variant makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from privfedtalk_flare.evaluation.summary import legend
from privfedtalk_flare.report.charts import intervals
from privfedtalk_flare.report.measured import Films, measured
from privfedtalk_flare.report.page import Chart, Film, Section
from privfedtalk_flare.report.run import films_in
from privfedtalk_flare.study.plan import POOLED, undamaged, unlike
from privfedtalk_flare.study.results import Results, metrics_of
from privfedtalk_flare.study.runner import folder_of
from privfedtalk_flare.study.tables import SHOWN, Table, differences, heading, means, rounds
from privfedtalk_flare.study.told import PAIRED, ROUNDS, status


def sections_of(results: Results, out: Path, weights: Path | None) -> list[Section]:
    """`out`: the study's folder, with a folder for each run; `weights` as `films.measure_each`."""
    if not results.variants:
        return [Section("Results", texts=["Nothing has run yet."])]
    films = _films(results, out)
    return [Section("Results", texts=[status(results)], tables=[means(results)]),
            replace(_told("Differences", PAIRED, differences(results)), charts=_intervals(results)),
            Section("Every metric", [legend(metrics_of(results))], [means(results, metrics_of(results))]),
            measured(films, weights),
            _samples(films),
            _told("Rounds", ROUNDS, rounds(results))]


def _told(title: str, text: str, table: Table) -> Section:
    """The table with what it is, nothing where it has no line."""
    return Section(title, texts=[text], tables=[table]) if table[1] else Section(title)


def _samples(films: Mapping[str, Films]) -> Section:
    """One person as each variant makes them: one of whom most variants have a film."""
    counted = Counter(at for of in films.values() for at in of)
    if not counted:
        return Section("Samples")
    chosen = max(sorted(counted), key=counted.__getitem__)
    return Section("Samples", texts=[f"The same person of seed {chosen[0]}, as each variant "
                   "with the same clips makes them."],
                   films=[replace(of[chosen], caption=f"{name}: {of[chosen].caption}") for name, of in films.items()
                          if chosen in of])


def _intervals(results: Results) -> list[Chart]:
    charts = [differing(results, metric) for metric in metrics_of(results) if metric in SHOWN]
    return [chart for chart in charts if chart.svg]


def differing(results: Results, metric: str) -> Chart:
    """Every comparison's difference in one metric."""
    told = {str(pair): found for pair in results.study.compare
            if (found := results.compared(pair, metric)) is not None}
    ends = {name: (found.mean, found.low, found.high) for name, found in told.items()}
    return Chart(intervals(ends, heading(metric), [name for name, found in told.items() if found.settled]),
                 f"{heading(metric)}: difference, 95 % interval; grey where the table is not bold")


def _films(results: Results, out: Path) -> dict[str, dict[tuple[int, str], Film]]:
    """Of each variant the films of all its runs, of people at undamaged sites as everywhere. A person has the same
    opaque name in every run of a study. Variants whose people have other clips than the first variant's are left out:
    their films are of other words."""
    variants = [results.study.variants[name] for name in results.variants]
    first = variants[0].corpus
    return {variant.name: {(seed, film.person): film for seed in sorted(results.runs(variant.name))
                           for film in films_in(folder_of(out, variant, seed))
                           if film.site in (*variant.corpus.good, POOLED)}
            for variant in variants
            if not unlike(first, variant.corpus, sites=undamaged(first, variant.corpus))}
