"""The films of a page, by networks that others trained: each by itself, and all of a kind as a set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from privfedtalk_flare.data.clips import ClipFile, load_clip
from privfedtalk_flare.data.sound import SAMPLES_PER_FRAME
from privfedtalk_flare.evaluation.films import FILM_METRICS, FilmPair, has, measure_each, measure_together, missing
from privfedtalk_flare.report.page import Film, Section
from privfedtalk_flare.study.results import estimate
from privfedtalk_flare.study.tables import shown

Films = Mapping[tuple[int, str], Film]
"""(seed, person) -> film."""

_SAID = ("Of the {common} films whose people every line has, each with the last adapter that its person has: their "
         "own, else the shared one. Means and half their 95 % interval, over seeds where there are several, else over "
         "people.")


def measured(named: Mapping[str, Films], weights: Path | None) -> Section:
    """A line for each name's films, below the real ones and copies of the picture that each was made from; `weights` as
    `films.measure_each`."""
    named = {name: films for name, films in named.items() if films}
    known, lacking = [name for name in FILM_METRICS if has(weights, name)], missing(weights)
    if not named or not known:
        return Section("Films by networks", [lacking] if named else [])
    pairs = {name: {at: _pair(film) for at, film in films.items()} for name, films in named.items()}
    first = next(iter(pairs.values()))
    still = {at: _picture(film.reference) for at, film in next(iter(named.values())).items() if film.reference}
    rows = {"*ground_truth*": {at: _instead(pair, pair.real) for at, pair in first.items()},
            "*copy_reference*": {at: _instead(first[at], np.repeat(picture[None], len(first[at].real), 0))
                                 for at, picture in still.items()}, **pairs}
    rows = {name: films for name, films in rows.items() if films}
    common = sorted(set.intersection(*(set(films) for films in rows.values())))
    if not common:
        return Section("Films by networks", ["Nobody has a film in every line, so none can be compared.", lacking])
    kept = {name: [films[at] for at in common] for name, films in rows.items()}
    told = iter(measure_each([film for films in kept.values() for film in films], weights))  # networks are loaded once
    each = {name: {at: next(told) for at in common} for name in kept}
    together = {name: measure_together(films, weights) for name, films in kept.items()}
    body = [[name, *(f"{together[name][metric]:.3f}" if metric in together[name] else
                     shown(estimate({at: values[metric] for at, values in each[name].items() if metric in values}), 3)
                     for metric in known)] for name in rows]
    return Section("Films by networks", [_SAID.format(common=len(common)), lacking],
                   [(["", *(FILM_METRICS[name] for name in known)], body)])


def _pair(film: Film) -> FilmPair:
    generated, real = (load_clip(ClipFile("", path), size=None) for path in (film.generated, film.real))
    count = min(len(generated.frames), len(real.frames))
    return FilmPair(generated.frames[:count], real.frames[:count], real.audio[:count * SAMPLES_PER_FRAME])


def _picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _instead(pair: FilmPair, frames: np.ndarray) -> FilmPair:
    """The same, with `frames` in the place of the generated ones."""
    return FilmPair(frames, pair.real, pair.audio)
