"""Runs a study: each variant and seed in a folder of its own, one after another. What is there is not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from privfedtalk_flare.data.synthetic import Person, renderer_digest
from privfedtalk_flare.files import READABLE, locked, write_whole
from privfedtalk_flare.flare.sections import plain
from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.study.people import STRENGTHS
from privfedtalk_flare.study.plan import HELD_OUT, RUNNABLE, Study, Variant, as_plain, load_study, recipe_of
from privfedtalk_flare.study.processes import RunError, StalledError, terminated_in_order
from privfedtalk_flare.study.provenance import made_by
from privfedtalk_flare.study.results import Results
from privfedtalk_flare.study.simulation import run

RESULT = "result.json"
STUDY = "study.yaml"
TRIES = 3
"""How often a run is begun whose sites the simulator loses."""


def run_study(study: Study, out: Path, say: Callable[[str], None], record: Path | None = None) -> list[dict[str, Any]]:
    """Runs what is not in `out` yet, and returns every run's result. Stopped at any point, it goes on from there.

    `record`: a folder that keeps the study's text and every result as well, and nothing else of a run: whoever has it
    can go on with the study on another machine, or tell it again.

    Raises `SettingsError` where `out` holds a run that would be another one today (by its study, by a default, by the
    backbone or the renderer), is in use, or cannot be FLARE's workspace; `RunError` where a run does not end well.
    """
    out = out.resolve()
    if any(letter.isspace() for letter in str(out)):
        raise SettingsError(f"{str(out)!r}: FLARE's simulator does not work in a folder with a space in its path; give "
                            "another --out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out / "lock", wait=False, inherited=True), terminated_in_order():
            return _run_missing(study, out, say, record)
    except BlockingIOError as error:
        raise SettingsError(f"{out}: another `privfedtalk study`, or what is left of one, is at work in this "
                            "folder; wait for it, or give another --out") from error


def _run_missing(study: Study, out: Path, say: Callable[[str], None], record: Path | None) -> list[dict[str, Any]]:
    made = {name: made_from(variant) for name, variant in study.variants.items()}
    results, waiting = [], []
    for variant, seed in study.runs:
        folder = folder_of(out, variant, seed)
        places = _places_of(folder, record)
        found = [one for place in places if (one := _finished(place, variant, made[variant.name])) is not None]
        if not found:
            waiting.append((variant, seed, folder, places))
            continue
        if found[0] != found[-1]:
            raise SettingsError(f"{places[0]} and {places[1]} hold two runs of {variant.name} seed {seed}; remove one")
        _save(found[0], places)
        results.append(found[0])
    for folder in (out, *([record] if record is not None else [])):  # for whoever reads the results later
        write_whole(folder / STUDY, study.source.encode(), READABLE)
    say(f"study {study.name}: {len(study.runs)} runs, {len(results)} of them done already; it can be stopped at any "
        "time, and the same command goes on")
    kept = [out / "runs", *([record] if record is not None else [])]
    _check_clips(study, results, kept)
    for number, (variant, seed, folder, places) in enumerate(waiting, 1):
        say(f"{variant.name} seed {seed} begins, run {number} of {len(waiting)}")
        result = {"variant": variant.name, "seed": seed, "made_from": made[variant.name], "made_by": made_by(),
                  **_try(variant, seed, out, folder, say), "day": datetime.now(UTC).date().isoformat()}
        results.append(result)
        _save(result, places)
        _check_clips(study, results, kept)
        mean = sum(one["seconds"] for one in results) / len(results)
        say(f"{variant.name} seed {seed}: {result['seconds']:.0f} s; {len(waiting) - number} left, about "
            f"{(len(waiting) - number) * mean / 60:.0f} min")
    return results


def _try(variant: Variant, seed: int, out: Path, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    for _ in range(TRIES - 1):
        try:
            return run(variant, seed, out, folder)
        except StalledError as error:
            say(f"{variant.name} seed {seed} begins again: {error}")
    return run(variant, seed, out, folder)


def _check_clips(study: Study, results: Sequence[Mapping[str, Any]], kept: Sequence[Path]) -> None:
    """Raises `RunError` where two of `results` that are compared were measured on different clips, as libraries that
    render or decode otherwise make them."""
    found = Results(study, results)
    try:
        for pair in study.compare:
            found.compared(pair, "psnr_mask")
    except ValueError as error:
        raise RunError(f"{error}: remove what that seed has of one of them, or of both, from "
                       f"{' and '.join(map(str, kept))}, and call again") from error


def _save(result: Mapping[str, Any], places: Sequence[Path]) -> None:
    for place in places:
        if not place.is_file():
            write_whole(place, json.dumps(result, separators=(",", ":")).encode(), READABLE)


def results_in(out: Path) -> Results:
    """The results that lie in a study's folder, or where they were recorded, of the study that is kept there. Raises
    `SettingsError`."""
    study, found = load_study(str(out / STUDY)), []
    for variant, seed in study.runs:
        places = _places_of(folder_of(out, variant, seed), out)
        found += [one for place in places if (one := _finished(place, variant, as_plain(variant))) is not None][:1]
    return Results(study, found)


def _places_of(folder: Path, record: Path | None) -> list[Path]:
    """Where the result of the run in `folder` lies: there, and in the folder `record`, if there is one."""
    return [folder / RESULT, *([record / f"{folder.name}.json"] if record is not None else [])]


def made_from(variant: Variant) -> dict[str, Any]:
    """What a run of this variant was made from: what the study says, what it leaves to defaults, how many clips are
    held out, the networks, the renderer of its people, and what was done to their clips. (Not the code that trains and
    measures: of that `provenance.made_by` tells. Who changes it starts a study anew.)"""
    recipe = recipe_of(variant, 0)
    settings = {section: plain(getattr(recipe, section)) for section in RUNNABLE}
    return {**as_plain(variant), "settings": settings, "held_out": HELD_OUT,
            "networks": _networks(recipe.adapter.backbone),
            "renderer": renderer_digest(Person.draw(0, 0, variant.corpus.accent)),
            **({"strengths": STRENGTHS} if variant.corpus.damaged else {})}


@lru_cache
def _networks(source: str) -> list[str]:
    """Digests of the backbone, and of the embedder that scores and metrics of identity are taken with."""
    from privfedtalk_flare.evaluation.identity import load_embedder
    from privfedtalk_flare.generator.pipeline import load_pipeline

    embedder = sorted(load_embedder(source).state_dict().items())
    weights = b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in embedder)
    return [load_pipeline(source).digest, hashlib.sha256(weights).hexdigest()]


def folder_of(out: Path, variant: Variant, seed: int) -> Path:
    """Where a run lies: without a space, at which FLARE's simulator would cut the path in two. No two variants share
    one, as their names hold no underscore."""
    return out / "runs" / f"{variant.name.replace(' ', '_')}-{seed}"


def _finished(file: Path, variant: Variant, made: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in `file`, None where there is none. Raises `SettingsError` where it was made from anything else than
    `made` says."""
    if not file.is_file():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(made))
    if differing := list(_differing(now, {key: result["made_from"].get(key) for key in now})):
        raise SettingsError(f"{file}: a run of {variant.name} as it was before something changed "
                            f"({'; '.join(differing)}); remove it, or give another --out or --record")
    return result


def _differing(now: Mapping[str, Any], before: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """What `now` says otherwise than `before`, by its place: `settings.training.steps was 2, is 3`."""
    for key in {**before, **now}:
        was, value = before.get(key), now.get(key)
        if isinstance(value, dict) and isinstance(was, dict):
            yield from _differing(value, was, f"{at}{key}.")
        elif was != value:
            yield f"{at}{key} was {was!r:.60}, is {value!r:.60}"
