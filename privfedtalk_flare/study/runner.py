"""Runs a study: each variant and seed in a folder of its own, one after another. What is there is not run again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import privfedtalk_flare
from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.files import READABLE, write_whole
from privfedtalk_flare.settings import SettingsError
from privfedtalk_flare.study.people import prepare
from privfedtalk_flare.study.plan import Study, Variant, as_plain, load_study, recipe_of
from privfedtalk_flare.study.results import Results
from privfedtalk_flare.training.place import FILE_NAME as SITE_FILE
from privfedtalk_flare.training.validation import FILE_NAME as VALIDATION

RESULT = "result.json"
STUDY = "study.yaml"
AT_ONCE = 8
"""Most sites that are processes at the same time, each with about 1.2 GiB. It may be more than there are cores: the
simulator starts a site that has to wait for its turn anew for every task."""
CONSOLE = Path(privfedtalk_flare.__file__).parent / "flare" / "console.json"


class RunError(ValueError):
    """A run that did not end well. The message names its log."""


def run_study(study: Study, out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Runs what is not in `out` yet, and returns every run's result. Stopped at any point, it goes on from there.

    Raises `SettingsError` where `out` holds a run of a variant that has changed since, or cannot be FLARE's workspace.
    """
    out = out.resolve()
    if any(letter.isspace() for letter in str(out)):
        raise SettingsError(f"{str(out)!r}: FLARE's simulator does not work in a folder with a space in its path; give "
                            "another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / STUDY, study.source.encode(), READABLE)  # for whoever reads the results later
    results, waiting = [], []
    for variant, seed in study.runs:
        found = _finished(variant, seed, folder_of(out, variant, seed))
        if found is None:
            waiting.append((variant, seed))
        else:
            results.append(found)
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
             if (result := _finished(variant, seed, folder_of(out, variant, seed))) is not None]
    return Results(study, found)


def run(variant: Variant, seed: int, out: Path) -> dict[str, Any]:
    """One run, from its people to its result, which is written last. Raises `RunError`."""
    folder = folder_of(out, variant, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    corpora = prepare(variant.corpus, seed, out / "people")
    began = time.time()
    if variant.method == "pooled":
        people = _pooled(variant, seed, corpora, folder)
    elif variant.method == "local":
        beside = min(_cores(), variant.corpus.sites)
        with ThreadPoolExecutor(beside) as pool:
            parts = pool.map(lambda site: _simulated(variant, seed, corpora, folder / site, [site], beside),
                             variant.corpus.names)
            people = {site: told for part in parts for site, told in part.items()}
    else:
        people = _simulated(variant, seed, corpora, folder, variant.corpus.names)
    summary = None if variant.method != "federated" else load_summary(folder / "workspace").to_json()
    result = {"variant": variant.name, "seed": seed, "made_from": as_plain(variant), "seconds": time.time() - began,
              "people": people, "summary": summary}
    for cache in folder.rglob("cache"):
        shutil.rmtree(cache, ignore_errors=True)
    write_whole(folder / RESULT, json.dumps(result, indent=1).encode(), READABLE)
    return result


def folder_of(out: Path, variant: Variant, seed: int) -> Path:
    """Where a run lies: without a space, at which FLARE's simulator would cut the path in two. No two variants share
    one, as their names hold no underscore."""
    return out / "runs" / f"{variant.name.replace(' ', '_')}-{seed}"


def _finished(variant: Variant, seed: int, folder: Path) -> dict[str, Any] | None:
    if not (folder / RESULT).is_file():
        return None
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if result["made_from"] != json.loads(json.dumps(as_plain(variant))):
        raise SettingsError(f"{folder}: a run of {variant.name} as it was before the study was changed; remove it, or "
                            "give another --out")
    return result


def _simulated(variant: Variant, seed: int, corpora: Path, folder: Path, sites: Sequence[str],
               beside: int = 1) -> dict[str, Any]:
    """A run in FLARE's simulator, one of `beside` that run at once; site -> person -> row -> metric -> value, as each
    site has it for itself."""
    recipe = recipe_of(variant, len(sites), seed)
    recipe.export(str(folder))
    if variant.aggregator:
        _swap_aggregator(folder / "study", variant.aggregator)
    workspace, at_once = folder / "workspace", min(len(sites), AT_ONCE)
    threads = max(1, _cores() // (at_once * beside))
    (workspace / "local").mkdir(parents=True)
    (workspace / "local" / SITE_FILE).write_text(
        f"corpus: {corpora}/{{site}}\nstate: {folder}/state/{{site}}\nthreads: {threads}\nrequire_encryption: false\n"
        f"measured: {variant.corpus.measured or 'null'}\n", encoding="utf-8")
    nvflare = Path(sys.executable).with_name("nvflare")
    _run([nvflare, "simulator", folder / "study", "-w", workspace, "-c", ",".join(sites), "-t", str(at_once)],
         folder / "log.txt")
    return {site: _validation(workspace / site / "simulate_job") for site in sites}


def _pooled(variant: Variant, seed: int, corpora: Path, folder: Path) -> dict[str, Any]:
    told = {"corpora": str(corpora), "folder": str(folder / "pooled"), "seed": seed, "lanes": _cores(),
            "sections": as_plain(variant)["sections"]}
    (folder / "pooled.json").write_text(json.dumps(told), encoding="utf-8")
    _run([sys.executable, "-m", "privfedtalk_flare.study.pooled", folder / "pooled.json"], folder / "log.txt")
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


def _run(command: Sequence[object], log: Path) -> None:
    """Runs a command to its end, with its output in `log`; no process of it is left, however this ends."""
    with log.open("w", encoding="utf-8") as output, subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "FL_LOG_LEVEL": str(CONSOLE)}, start_new_session=True) as process:
        try:
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise RunError(f"`{command[0]}` ended with exit code {process.returncode}; see {log}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
