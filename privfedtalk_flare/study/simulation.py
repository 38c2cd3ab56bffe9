"""One run of a study: in FLARE's simulator, or by trainers that do without."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import privfedtalk_flare
from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.files import write_whole
from privfedtalk_flare.study.people import prepare
from privfedtalk_flare.study.plan import POOLED, Variant, as_plain, recipe_of
from privfedtalk_flare.study.processes import Command, RunError, run_all
from privfedtalk_flare.training import worklog
from privfedtalk_flare.training.corpus import NAMES_KEY, secret_of
from privfedtalk_flare.training.place import FILE_NAME as SITE_FILE
from privfedtalk_flare.training.validation import FILE_NAME as VALIDATION

AT_ONCE = 8
"""Most sites that are processes at the same time, each with about 1.2 GiB, even on fewer cores: a site that waits for
its turn is a new process for every task."""
_LOST = ("Communication error with client", "Subprocess died for client", "run_client_thread error")
"""What FLARE 2.9's simulator says where it lost a site. It starts several at once, gives two of them one port now and
then (in three of sixty runs), and starts none again: the round would wait for the site until its `timeout`."""
_ENVIRONMENT = {"FL_LOG_LEVEL": str(Path(privfedtalk_flare.__file__).parent / "flare" / "console.json")}


def run(variant: Variant, seed: int, out: Path, folder: Path) -> dict[str, Any]:
    """One run in `folder`, from its people, whom the runs of a study share in `out`, to what they measured: `seconds`,
    `people` (site -> person -> row -> metric -> value) and the job's `summary`. Raises `RunError`, and `StalledError`
    where the simulator lost a site."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    corpora, secret = prepare(variant.corpus, seed, out / "people"), secret_of(out)
    began, summary = time.time(), None
    if variant.method == "federated":
        simulation = Simulation(variant, seed, folder)
        run_all([simulation.prepare(corpora, secret)], 1, _ENVIRONMENT)
        people, summary = simulation.results(), load_summary(simulation.workspace).to_json()
    else:
        people = _alone(variant, seed, corpora, folder, secret)
    _check(variant, people, folder)
    seconds = time.time() - began
    for cache in folder.rglob("cache"):
        shutil.rmtree(cache, ignore_errors=True)
    return {"seconds": seconds, "people": people, "summary": summary}


def _check(variant: Variant, people: Mapping[str, Mapping[str, Mapping[str, Any]]], folder: Path) -> None:
    """Raises `RunError` unless everybody was measured with every adapter that was to be trained."""
    corpus, phases = variant.corpus, recipe_of(variant, 0).rounds.phases
    wanted = min(corpus.measured or corpus.people, corpus.people) * corpus.sites
    rows = {"backbone", "shared", *(("personalized",) if "personalize" in phases else ())}
    whole = sum(rows <= of.keys() for site in people.values() for of in site.values())
    if whole != wanted:
        raise RunError(f"{folder}: {whole} of {wanted} people were measured in rows {', '.join(sorted(rows))}; the "
                       "sites' logs say why")


@dataclass(frozen=True)
class Simulation:
    """A federated run in FLARE's simulator, in a folder of its own."""

    variant: Variant
    seed: int
    folder: Path

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace"

    def prepare(self, corpora: Path, secret: bytes) -> Command:
        """Writes the job and the sites' files. `secret`: what people's opaque names are made with, the same in all
        runs, so that a person is found in each."""
        variant, sites = self.variant, self.variant.corpus.names
        recipe_of(variant, self.seed).export(str(self.folder))
        if variant.aggregator:
            _put_control(self.folder / "study", variant.aggregator, self.seed)
        at_once = min(len(sites), AT_ONCE)
        write_whole(self.workspace / "local" / SITE_FILE, (
            f"corpus: {corpora}/{{site}}\nstate: {self.folder}/state/{{site}}\nthreads: {max(1, _cores() // at_once)}\n"
            f"require_encryption: false\nmeasured: {variant.corpus.measured or 'null'}\n").encode())
        for site in sites:
            write_whole(self.folder / "state" / site / NAMES_KEY, secret)
        return Command([Path(sys.executable).with_name("nvflare"), "simulator", self.folder / "study", "-w",
                        self.workspace, "-c", ",".join(sites), "-t", at_once], self.folder / "log.txt", _LOST)

    def results(self) -> dict[str, Any]:
        """site -> person -> row -> metric -> value, as each site has it for itself. Raises `RunError` where the job
        gave up a round, or where somebody's training failed, which a job counts as nothing learnt."""
        planned, summary = recipe_of(self.variant, self.seed).rounds, load_summary(self.workspace)
        if "adapter" in planned.phases and len(summary.rounds) != planned.rounds:
            raise RunError(f"{self.folder}: {len(summary.rounds)} of {planned.rounds} rounds were finished "
                           f"({'; '.join(summary.notes) or 'no note says why'}); see {self.folder / 'log.txt'}")
        runs = {site: self.workspace / site / "simulate_job" for site in self.variant.corpus.names}
        for site, run in runs.items():
            if failed := sum(told.get("failed", 0) for told in worklog.read_notes(run)):
                raise RunError(f"{self.folder}: {failed} trainings of people of {site} failed; see "
                               f"{self.folder / 'log.txt'}")
        return {site: _validation(run) for site, run in runs.items()}


def _alone(variant: Variant, seed: int, corpora: Path, folder: Path, secret: bytes) -> dict[str, Any]:
    """One trainer for everybody, or one for each site, a core each as long as there are cores."""
    of = {POOLED: variant.corpus.names} if variant.method == POOLED else {site: [site] for site in variant.corpus.names}
    beside, commands = min(_cores(), len(of)), []
    for name, sites in of.items():
        told = {"name": name, "corpora": [str(corpora / site) for site in sites], "folder": str(folder / name),
                "sections": as_plain(variant)["sections"], "seed": seed, "threads": max(1, _cores() // beside)}
        write_whole(folder / f"{name}.json", json.dumps(told).encode())
        write_whole(folder / name / "state" / NAMES_KEY, secret)
        commands.append(Command([sys.executable, "-m", "privfedtalk_flare.study.alone", folder / f"{name}.json"],
                                folder / f"{name}.txt"))
    run_all(commands, beside, _ENVIRONMENT)
    return {name: _validation(folder / name / "trained") for name in of}


def _validation(folder: Path) -> dict[str, Any]:
    path = folder / VALIDATION
    if not path.is_file():
        raise RunError(f"{path} is not there: the run ended without measuring this site's people; the log beside it "
                       "says why")
    return json.loads(path.read_text(encoding="utf-8"))


def _put_control(job: Path, path: str, seed: int) -> None:
    file = job / "app" / "config" / "config_fed_server.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    (found,) = [one for one in content["components"] if one["id"] == "aggregator"]
    found["path"], found["args"]["seed"] = path, seed
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
