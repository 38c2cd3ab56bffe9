"""Runs a study: each variant and seed in a folder of its own, one after another. What is there is not run again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import privfedtalk_flare
from privfedtalk_flare.data.synthetic import Person, renderer_digest
from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.files import READABLE, locked, write_whole
from privfedtalk_flare.settings import SettingsError, plain
from privfedtalk_flare.study.people import prepare
from privfedtalk_flare.study.plan import RUNNABLE, Study, Variant, as_plain, load_study, recipe_of
from privfedtalk_flare.study.processes import Command, RunError, run_all, terminated_in_order
from privfedtalk_flare.study.results import Results
from privfedtalk_flare.training.corpus import NAMES_KEY, secret_of
from privfedtalk_flare.training.place import FILE_NAME as SITE_FILE
from privfedtalk_flare.training.validation import FILE_NAME as VALIDATION

RESULT = "result.json"
STUDY = "study.yaml"
AT_ONCE = 8
"""Most sites that are processes at the same time, each with about 1.2 GiB. It may be more than there are cores: the
simulator starts a site that has to wait for its turn anew for every task."""
_ENVIRONMENT = {"FL_LOG_LEVEL": str(Path(privfedtalk_flare.__file__).parent / "flare" / "console.json")}


def run_study(study: Study, out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Runs what is not in `out` yet, and returns every run's result. Stopped at any point, it goes on from there.

    Raises `SettingsError` where `out` holds a run that would be another one today (by its study, by a default, by the
    backbone or the renderer), is in use, or cannot be FLARE's workspace; `RunError` where a run does not end well.
    """
    out = out.resolve()
    if any(letter.isspace() for letter in str(out)):
        raise SettingsError(f"{str(out)!r}: FLARE's simulator does not work in a folder with a space in its path; give "
                            "another --out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out / "lock", wait=False), terminated_in_order():
            return _run_all(study, out, say)
    except BlockingIOError as error:
        raise SettingsError(f"{out}: another `privfedtalk study` is at work in this folder; wait for it, or give "
                            "another --out") from error


def _run_all(study: Study, out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    results, waiting = [], []
    for variant, seed in study.runs:
        found = _finished(folder_of(out, variant, seed), variant, made_from(variant))
        if found is None:
            waiting.append((variant, seed))
        else:
            results.append(found)
    write_whole(out / STUDY, study.source.encode(), READABLE)  # for whoever reads the results later
    say(f"study {study.name}: {len(study.runs)} runs, {len(results)} of them done already")
    for number, (variant, seed) in enumerate(waiting, 1):
        result = run(variant, seed, out)
        results.append(result)
        mean = sum(one["seconds"] for one in results) / len(results)
        say(f"{variant.name} seed {seed}: {result['seconds']:.0f} s; {len(waiting) - number} left, about "
            f"{(len(waiting) - number) * mean / 60:.0f} min")
    return results


def results_in(out: Path) -> Results:
    """The results that lie in a study's folder, of the study that is kept there. Raises `SettingsError`."""
    study = load_study(str(out / STUDY))
    found = [result for variant, seed in study.runs
             if (result := _finished(folder_of(out, variant, seed), variant, as_plain(variant))) is not None]
    return Results(study, found)


def run(variant: Variant, seed: int, out: Path) -> dict[str, Any]:
    """One run, from its people to its result, which is written last. Raises `RunError`."""
    folder = folder_of(out, variant, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    corpora, secret = prepare(variant.corpus, seed, out / "people"), secret_of(out)
    began = time.time()
    if variant.method == "pooled":
        people = _pooled(variant, seed, corpora, folder, secret)
    elif variant.method == "local":
        alone = [_Simulation(variant, seed, folder / site, [site]) for site in variant.corpus.names]
        people = _simulated(alone, corpora, secret, min(_cores(), len(alone)))
    else:
        people = _simulated([_Simulation(variant, seed, folder, variant.corpus.names)], corpora, secret, 1)
    measured = min(variant.corpus.measured or variant.corpus.people, variant.corpus.people) * variant.corpus.sites
    if (there := sum(map(len, people.values()))) != measured:
        raise RunError(f"{folder}: {there} of {measured} people were measured; the sites' logs say why")
    summary = None if variant.method != "federated" else load_summary(folder / "workspace").to_json()
    result = {"variant": variant.name, "seed": seed, "made_from": made_from(variant), "seconds": time.time() - began,
              "people": people, "summary": summary}
    for cache in folder.rglob("cache"):
        shutil.rmtree(cache, ignore_errors=True)
    write_whole(folder / RESULT, json.dumps(result, indent=1).encode(), READABLE)
    return result


def made_from(variant: Variant) -> dict[str, Any]:
    """All that decides what a run of this variant gives, as JSON has it: what the study says, what it leaves to
    defaults, the backbone, and the renderer of its people."""
    recipe = recipe_of(variant, 1 if variant.method == "local" else variant.corpus.sites, 0)
    settings = {section: plain(getattr(recipe, section)) for section in RUNNABLE}
    made = {**as_plain(variant), "settings": settings, "backbone": _backbone(recipe.adapter.backbone),
            "renderer": renderer_digest(Person.draw(0, 0, variant.corpus.accent))}
    return json.loads(json.dumps(made))


@lru_cache
def _backbone(source: str) -> str:
    from privfedtalk_flare.generator.pipeline import load_pipeline

    return load_pipeline(source).digest


def folder_of(out: Path, variant: Variant, seed: int) -> Path:
    """Where a run lies: without a space, at which FLARE's simulator would cut the path in two. No two variants share
    one, as their names hold no underscore."""
    return out / "runs" / f"{variant.name.replace(' ', '_')}-{seed}"


def _finished(folder: Path, variant: Variant, made: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in a run's folder, None where it is not finished. Raises `SettingsError` where it was made from
    anything else than `made` says."""
    if not (folder / RESULT).is_file():
        return None
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    differing = [key for key, value in json.loads(json.dumps(made)).items() if result["made_from"].get(key) != value]
    if differing:
        raise SettingsError(f"{folder}: a run of {variant.name} as it was before something changed "
                            f"({', '.join(differing)}); remove it, or give another --out")
    return result


@dataclass(frozen=True)
class _Simulation:
    """A run in FLARE's simulator, or a part of one, in a folder of its own."""

    variant: Variant
    seed: int
    folder: Path
    sites: Sequence[str]

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def prepare(self, corpora: Path, secret: bytes, beside: int) -> Command:
        """Writes the job and the sites' files. `beside`: how many simulations run at once; `secret`: what people's
        opaque names are made with, the same in all runs, so that a person is found in each."""
        recipe = recipe_of(self.variant, len(self.sites), self.seed)
        recipe.export(str(self.folder))
        if self.variant.aggregator:
            _swap_aggregator(self.folder / "study", self.variant.aggregator)
        at_once = min(len(self.sites), AT_ONCE)
        threads = max(1, _cores() // (at_once * beside))
        write_whole(self.workspace / "local" / SITE_FILE, (
            f"corpus: {corpora}/{{site}}\nstate: {self.folder}/state/{{site}}\nthreads: {threads}\n"
            f"require_encryption: false\nmeasured: {self.variant.corpus.measured or 'null'}\n").encode())
        for site in self.sites:
            write_whole(self.folder / "state" / site / NAMES_KEY, secret)
        return Command([Path(sys.executable).with_name("nvflare"), "simulator", self.folder / "study", "-w",
                        self.workspace, "-c", ",".join(self.sites), "-t", at_once], self.folder / "log.txt")

    def results(self) -> dict[str, Any]:
        """site -> person -> row -> metric -> value, as each site has it for itself. Raises `RunError` where the job
        gave up a round."""
        planned = recipe_of(self.variant, len(self.sites), self.seed).rounds
        summary = load_summary(self.workspace)
        if "adapter" in planned.phases and len(summary.rounds) != planned.rounds:
            raise RunError(f"{self.folder}: {len(summary.rounds)} of {planned.rounds} rounds were finished "
                           f"({'; '.join(summary.notes) or 'no note says why'}); see {self.folder / 'log.txt'}")
        return {site: _validation(self.workspace / site / "simulate_job") for site in self.sites}


def _simulated(parts: Sequence[_Simulation], corpora: Path, secret: bytes, beside: int) -> dict[str, Any]:
    """What all parts of a run found, `beside` of them at a time."""
    run_all([part.prepare(corpora, secret, beside) for part in parts], beside, _ENVIRONMENT)
    return {site: told for part in parts for site, told in part.results().items()}


def _pooled(variant: Variant, seed: int, corpora: Path, folder: Path, secret: bytes) -> dict[str, Any]:
    told = {"corpora": str(corpora), "folder": str(folder / "pooled"), "seed": seed, "lanes": _cores(),
            "sections": as_plain(variant)["sections"]}
    write_whole(folder / "pooled.json", json.dumps(told).encode())
    write_whole(folder / "pooled" / "state" / NAMES_KEY, secret)
    run_all([Command([sys.executable, "-m", "privfedtalk_flare.study.pooled", folder / "pooled.json"],
                     folder / "log.txt")], 1, _ENVIRONMENT)
    return {"pooled": _validation(folder / "pooled")}


def _validation(folder: Path) -> dict[str, Any]:
    path = folder / VALIDATION
    if not path.is_file():
        raise RunError(f"{path} is not there: the run ended without measuring this site's people; the log beside it "
                        "says why")
    return json.loads(path.read_text(encoding="utf-8"))


def _swap_aggregator(job: Path, path: str) -> None:
    file = job / "app" / "config" / "config_fed_server.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    (found,) = [one for one in content["components"] if one["id"] == "aggregator"]
    found["path"] = path
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
