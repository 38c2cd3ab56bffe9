"""One run of a study: in FLARE's simulator, once or site by site, or by one trainer."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import privfedtalk_flare
from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.files import write_whole
from privfedtalk_flare.study.people import prepare
from privfedtalk_flare.study.plan import Variant, as_plain, recipe_of
from privfedtalk_flare.study.processes import Command, RunError, run_all
from privfedtalk_flare.training.corpus import NAMES_KEY, secret_of
from privfedtalk_flare.training.place import FILE_NAME as SITE_FILE
from privfedtalk_flare.training.validation import FILE_NAME as VALIDATION

AT_ONCE = 8
"""Most sites that are processes at the same time, each with about 1.2 GiB. It may be more than there are cores: the
simulator starts a site that has to wait for its turn anew for every task."""
_ENVIRONMENT = {"FL_LOG_LEVEL": str(Path(privfedtalk_flare.__file__).parent / "flare" / "console.json")}


def run(variant: Variant, seed: int, out: Path, folder: Path) -> dict[str, Any]:
    """One run in `folder`, from its people, whom the runs of a study share in `out`, to what they measured: `seconds`,
    `people` (site -> person -> row -> metric -> value) and the job's `summary`. Raises `RunError`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    corpora, secret = prepare(variant.corpus, seed, out / "people"), secret_of(out)
    began = time.time()
    if variant.method == "pooled":
        people = _pooled(variant, seed, corpora, folder, secret)
    elif variant.method == "local":
        alone = [Simulation(variant, seed, folder / site, [site]) for site in variant.corpus.names]
        people = _simulated(alone, corpora, secret, min(_cores(), len(alone)))
    else:
        people = _simulated([Simulation(variant, seed, folder, variant.corpus.names)], corpora, secret, 1)
    measured = min(variant.corpus.measured or variant.corpus.people, variant.corpus.people) * variant.corpus.sites
    if (there := sum(map(len, people.values()))) != measured:
        raise RunError(f"{folder}: {there} of {measured} people were measured; the sites' logs say why")
    summary = None if variant.method != "federated" else load_summary(folder / "workspace").to_json()
    seconds = time.time() - began
    for cache in folder.rglob("cache"):
        shutil.rmtree(cache, ignore_errors=True)
    return {"seconds": seconds, "people": people, "summary": summary}


@dataclass(frozen=True)
class Simulation:
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


def _simulated(parts: Sequence[Simulation], corpora: Path, secret: bytes, beside: int) -> dict[str, Any]:
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
