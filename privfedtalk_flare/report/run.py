"""The sections of one run: what it made, how it went, what it promised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from privfedtalk_flare.evaluation.summary import METRICS, UNBOUNDED, Round, Summary, legend
from privfedtalk_flare.evaluation.table import (
    ROUND_HEADS,
    VIEWS,
    epsilon_words,
    people,
    round_lines,
    row_lines,
    totals,
)
from privfedtalk_flare.report.charts import lines
from privfedtalk_flare.report.measured import measured
from privfedtalk_flare.report.page import Chart, Film, Section
from privfedtalk_flare.settings import COMPONENTS
from privfedtalk_flare.study.tables import Table, heading
from privfedtalk_flare.training import worklog

FILMS = 8
"""Most samples that a page shows."""
_AT_HOME = "Videos, losses and times of training stay at their sites; none is here."


def sections_of(summary: Summary, file: Path, weights: Path | None) -> list[Section]:
    """`file`: the summary's, as sites' run folders may lie near it; `weights` as `films.measure_each`."""
    folders = _folders_of(file)
    films, work = [film for folder in folders for film in films_in(folder)], _work_in(folders)
    known = [name for name in METRICS if any(name in metrics for metrics in summary.rows.values())]
    said = [f"The first {FILMS} of {len(films)}; the others lie beside them."] if len(films) > FILMS else []
    return [Section("Samples", films=films[:FILMS], texts=said if films or work else [_AT_HOME]),
            *([Section("Held-out clips", tables=[_rows(summary, known)], texts=[
                f"Mean over {people(summary.rows)} people, standard deviation in brackets. {legend(known)}"])]
              if summary.rows else []),
            measured({"generated": {(0, film.person): film for film in films}}, weights),
            Section("Learning", charts=_learning(work)),
            Section("Rounds", tables=[_rounds(summary)] if summary.rounds else [], charts=_curves(summary),
                    texts=epsilon_words(summary) if summary.rounds else []),
            Section("Seconds and bytes by part", tables=[_parts(summary, work)]),
            Section("Settings and notes", texts=[totals(summary), *summary.notes])]


def films_in(folder: Path) -> list[Film]:
    """Sample videos with the real clips beside them, wherever sites keep them under `folder`."""
    found = []
    for generated in sorted(folder.rglob("videos/*.mp4")):
        real, sheet, reference = (generated.with_suffix(end) for end in (".real.mp4", ".png", ".reference.png"))
        if real.is_file():
            site, person = _site_of(generated.parent.parent), generated.stem
            found.append(Film(real, generated, site, person, f"{site}, person {person}",
                              *(path if path.is_file() else None for path in (sheet, reference))))
    return found


def _site_of(run: Path) -> str:
    """The site whose run folder this is: `<site>/<job>`, in a simulation as in a kit."""
    return run.parent.name


def _folders_of(file: Path) -> list[Path]:
    """Where sites keep what they made of the run whose summary this is: `<site>/<job>` beside `<server>/<job>`, as in a
    simulation and in kits, which may hold other jobs; else anywhere below the summary's folder."""
    job = file.resolve().parent
    beside = [folder for folder in sorted(job.parent.parent.glob(f"*/{escape(job.name)}")) if folder != job]
    return beside or [job]


def _work_in(folders: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """What the sites noted of their work in or under these folders, site by site."""
    return {_site_of(path.parent): worklog.read_notes(path.parent)
            for folder in folders for path in sorted(folder.rglob(worklog.FILE_NAME))}


def _rows(summary: Summary, known: Sequence[str]) -> Table:
    body = [[row, *(f"{mean} ({', '.join(others)})" if others else mean for mean, *others in cells)]
            for row, cells in row_lines(summary.rows, known)]
    return ["", *map(heading, known)], body


def _rounds(summary: Summary) -> Table:
    return [" ".join(head.split()) for head in ROUND_HEADS], round_lines(summary.rounds, summary.values)


_SERVER = ("aggregate", "wall")
_CLOCKS = {"adapter": "training s", worklog.PROTECT: "protecting s", worklog.RECEIVE: "receiving s",
           "personalize": "personalising s", "validate": "measuring s",
           **{f"backbone {component}": f"{component} s" for component in COMPONENTS}}
"""Parts of a site's work, with the head of their column: to protect is to clip, noise and encrypt; to receive is to
decrypt, check and book."""


def _parts(summary: Summary, work: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Whole run: seconds of each part of the work where sites' notes are here, and bytes as the server counted them."""
    sites = sorted({*work, *(site for entry in summary.rounds for site in entry.sites)})
    parts = [part for part in _CLOCKS if any(one["part"] == part for notes in work.values() for one in notes)]
    body = []
    for site in sites:
        of = [sum(one["seconds"] for one in work.get(site, ()) if one["part"] == part) for part in parts]
        moved = [sum(entry.sites.get(site, {}).get(key, 0) for entry in summary.rounds)
                 for key in ("bytes_up", "bytes_down")]
        body.append([site, *(f"{value:.1f}" for value in of), *(f"{value:,.0f}" for value in moved), "", ""])
    server = [sum(entry.seconds.get(part, 0) for entry in summary.rounds) for part in _SERVER]
    body.append(["server", *([""] * (len(parts) + 2)), *(f"{value:.1f}" for value in server)])
    return ["", *(_CLOCKS[part] for part in parts), "bytes up", "bytes down", "summing s", "rounds s"], body


def _learning(work: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """A curve for each task that trained something: the mean loss of each site's people, round by round."""
    charts = []
    parts = {"adapter": "the shared adapter", **{f"backbone {name}": f"the backbone's {name}" for name in COMPONENTS}}
    for part, what in parts.items():
        series = {site: [(one["round"], one["loss"]) for one in notes if one["part"] == part and "loss" in one]
                  for site, notes in work.items()}
        charts.append(Chart(lines({site: of for site, of in series.items() if of}, "round", "loss"),
                            f"Loss of {what}, mean over each site's people: at the sites alone, it does not travel"))
    return [chart for chart in charts if chart.svg]


def _curves(summary: Summary) -> list[Chart]:
    rounds = summary.rounds

    def by_site(key: str, unit: float = 1.0) -> dict[str, list[tuple[float, float]]]:
        sites = sorted({site for entry in rounds for site in entry.sites})
        return {site: [(entry.round, entry.sites[site][key] / unit) for entry in rounds
                       if key in entry.sites.get(site, {})] for site in sites}

    def of_round(value: Callable[[Round], object]) -> list[tuple[float, float]]:
        return [(entry.round, float(told)) for entry in rounds if isinstance(told := value(entry), (int, float))]

    epsilon = {words: of_round(lambda entry, view=view: entry.epsilon.get(view)) for view, words in VIEWS.items()}
    unbounded = [words for view, words in VIEWS.items() if any(entry.epsilon.get(view) == UNBOUNDED
                                                               for entry in rounds)]
    seconds = {part: of_round(lambda entry, part=part: entry.seconds.get(part)) for part in _SERVER}
    charts = [Chart(lines(by_site("score"), "round", "score"), "Reliability of each site's adapter, as it travelled"),
              Chart(lines(by_site("weight"), "round", "weight"), "Weight of each site"),
              Chart(lines({name: told for name, told in epsilon.items() if told}, "round", "epsilon"),
                    "Epsilon by who is looking, over all rounds so far"
                    + (f"; unbounded for {', '.join(unbounded)}" if unbounded else "")),
              Chart(lines({"signal to noise": of_round(lambda entry: entry.snr)}, "round", "ratio"),
                    "Signal of a step, in its noise: chance alone makes estimates as large as those that the table "
                    "shows as a bound"),
              Chart(lines(seconds, "round", "seconds"), "Time of a round, and of the server's sum in it"),
              Chart(lines(by_site("bytes_up", 1e6), "round", "MB"), "Megabytes up, by site")]
    return [chart for chart in charts if chart.svg]


def lead(summary: Summary) -> str:
    """The run in one sentence; "" where it did nothing with a shared adapter."""
    sites = {site for entry in summary.rounds for site in entry.sites}
    told = [f"{len(sites)} sites, {len(summary.rounds)} rounds of the shared adapter"] if sites else []
    told += [f"{people(summary.rows)} people measured"] if summary.rows else []
    return ", ".join(told) + "." if told else ""
