"""The films of a page, measured as a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from privfedtalk_flare.data.clips import ClipFile, load_clip
from privfedtalk_flare.data.sound import SAMPLES_PER_FRAME
from privfedtalk_flare.evaluation.aperture import mouth_aperture
from privfedtalk_flare.evaluation.films import FILM_METRICS, FilmPair, measure, missing
from privfedtalk_flare.report.page import Film, Section
from privfedtalk_flare.study.tables import digits


def measured(named: Mapping[str, Sequence[Film]], weights: Path | None) -> Section:
    """A line for each name's films, below the real ones and a still picture; `weights` as `films.measure`."""
    pairs = {name: [_pair(film) for film in films] for name, films in named.items() if films}
    if not pairs:
        return Section("Films")
    first = next(iter(pairs.values()))
    rows = {"*ground_truth*": [FilmPair(pair.real, pair.real, pair.audio) for pair in first],
            "*first frame, still*": [FilmPair(np.repeat(pair.real[:1], len(pair.real), 0), pair.real, pair.audio)
                                     for pair in first], **pairs}
    told = {name: measure(films, weights, mouth_aperture) for name, films in rows.items()}
    known = [name for name in FILM_METRICS if any(name in values for values in told.values())]
    body = [[name, *(f"{values[metric]:.{3 if metric in ('jitter', 'lpips', 'kid') else digits(metric)}f}"
                     if metric in values else "-" for metric in known), str(len(rows[name]))]
            for name, values in told.items()]
    return Section("Films", missing(weights), [(["", *(FILM_METRICS[name] for name in known), "films"], body)])


def _pair(film: Film) -> FilmPair:
    generated, real = (load_clip(ClipFile("", path)) for path in (film.generated, film.real))
    count = min(len(generated.frames), len(real.frames))
    return FilmPair(generated.frames[:count], real.frames[:count], real.audio[:count * SAMPLES_PER_FRAME])
