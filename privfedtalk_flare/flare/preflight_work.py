"""The half of a site's preflight that is about work: its clips and their people, its packages, memory and devices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

import psutil
from nvflare.apis.workspace import Workspace

from privfedtalk_flare.data.clips import ClipError, ClipFile, find_clips, load_clip
from privfedtalk_flare.data.consent import consent_faults
from privfedtalk_flare.flare.finding import FAIL, PASS, WARN, Finding
from privfedtalk_flare.flare.startup import CLASSES, OURS, resources_of
from privfedtalk_flare.settings import DataSettings, SettingsError
from privfedtalk_flare.training.place import SitePlace

PACKAGE = "privfedtalk-flare"
MEMORY, MEMORY_SAVING = 2.5, 1.5
"""GiB that a job's process takes at the shipped sizes, by default and with low_memory (tests/benchmarks/memory.py)."""
DISK = 1.0
"""GiB below which a state folder is told to be nearly full."""
GIB = 2**30
NAMED = 5
"""Clips that are named where several cannot be used."""


def findings(workspace: Path, place: SitePlace) -> Iterator[Finding]:
    """Clips, consent, tenseal's version, class policy, memory, disk and devices."""
    yield from _clips(place)
    yield _tenseal()
    yield _classes(workspace, place.site)
    yield _memory(place)
    yield _disk(place.state)
    yield _devices(place)


def _clips(place: SitePlace) -> Iterator[Finding]:
    if place.corpus is None:
        yield Finding("clips", WARN, "no corpus", "set `corpus` in privfedtalk.yaml: without it jobs with rendered "
                                                  "people alone can run here")
        return
    try:
        files = find_clips(place.corpus)
    except ClipError as error:
        yield Finding("clips", FAIL, str(error), "jobs whose data is the site's own are declined until then, but for "
                                                 "those that bring a clip_source for it")
        return
    good: dict[str, int] = {}
    faults = []
    for file in files:
        try:
            load_clip(file)
        except ClipError as error:
            faults.append(str(error))
        else:
            good[file.identity] = good.get(file.identity, 0) + 1
    enough = [identity for identity, count in good.items() if count > DataSettings().held_out]
    told = f"{len(files) - len(faults)} of {len(files)} can be read, of {len(good)} people"
    if faults:
        told += ": " + "; ".join(faults[:NAMED]) + (" ..." if len(faults) > NAMED else "")
    if not enough:
        yield Finding("clips", FAIL, told, "put at least two good clips of each person into <corpus>/<identity>/")
    elif faults or len(enough) < len(good):
        yield Finding("clips", WARN, told, "mend or remove those that are named; people with fewer than two good clips "
                                           "are left out")
    else:
        yield Finding("clips", PASS, told)
    yield _consent(place, files, enough)


def _consent(place: SitePlace, files: Sequence[ClipFile], enough: Sequence[str]) -> Finding:
    """`enough`: the people with enough good clips."""
    people = consent_faults(files, date.today())
    faults = {identity: fault for identity, fault in people.items() if fault}
    told = f"on record for {len(people) - len(faults)} of {len(people)} people"
    if not faults:
        return Finding("consent", PASS, told)
    first, fault = next(iter(faults.items()))
    told += f"; {first}: {fault}"
    if not place.require_consent:
        return Finding("consent", WARN, f"not demanded; {told}",
                       "set require_consent: true in privfedtalk.yaml to leave out who has none that holds")
    if len(faults) == len(people):
        return Finding("consent", FAIL, told, "write <corpus>/<identity>/consent.yaml with `given: YYYY-MM-DD`")
    if enough and not set(enough) - set(faults):
        return Finding("consent", FAIL, f"{told}; none of them with two good clips", "nobody can take part: mend the "
                       "clips of these people, or ask the others for their consent")
    return Finding("consent", WARN, told, "the others are left out of every job until their consent.yaml holds")


def _tenseal() -> Finding:
    """Ciphertexts of another version do not load: all sites, and whoever provisions, need the same one."""
    try:
        wanted = next(line.partition("==")[2].strip() for line in metadata.requires(PACKAGE) or ()
                      if line.startswith("tenseal"))
        found = metadata.version("tenseal")
    except metadata.PackageNotFoundError as missing:
        return Finding("tenseal", FAIL, f"{missing.name} is not installed", "pip install this package")
    if found == wanted:
        return Finding("tenseal", PASS, found)
    return Finding("tenseal", FAIL, f"{found}, ciphertexts here are of {wanted}", f"pip install tenseal=={wanted}")


def _classes(workspace: Path, site: str) -> Finding:
    file = resources_of(Workspace(str(workspace), site))
    if not file.is_file():
        return Finding("class policy", WARN, f"no {file}", "start from a kit that FLARE has provisioned")
    try:
        allowed = json.loads(file.read_text(encoding="utf-8")).get(CLASSES)
    except (ValueError, AttributeError) as error:
        return Finding("class policy", FAIL, f"local/{file.name} cannot be read: {error}", "restore it from the kit")
    if isinstance(allowed, list) and any(one == OURS or one == "*" for one in allowed):
        return Finding("class policy", PASS, "jobs that bring no code can run")
    return Finding("class policy", WARN, f"local/{file.name} does not allow {OURS}",
                   f'only jobs that bring their own code (BYOC) run here; add "{OURS}" to {CLASSES} for the others')


def _memory(place: SitePlace) -> Finding:
    free, needed = psutil.virtual_memory().available / GIB, MEMORY_SAVING if place.low_memory else MEMORY
    told = f"{free:.1f} GiB free, a job's process takes about {needed:g}"
    if free >= needed:
        return Finding("memory", PASS, told)
    return Finding("memory", WARN, told, "free some, or set low_memory: true in privfedtalk.yaml")


def _disk(state: Path) -> Finding:
    there = next(folder for folder in (state, *state.parents) if folder.exists())
    free = shutil.disk_usage(there).free / GIB
    if free >= DISK:
        return Finding("disk", PASS, f"{free:.0f} GiB free for state")
    return Finding("disk", WARN, f"{free:.2f} GiB free for state", "make room: a ledger that cannot be written stops "
                                                                   "the site")


def _devices(place: SitePlace) -> Finding:
    try:
        devices = place.all_devices
    except SettingsError as error:
        return Finding("devices", FAIL, str(error), "name others, or leave it out: every task fails until then")
    if devices == ("cpu",) and not place.devices:
        return Finding("devices", PASS, "cpu: no CUDA device is here")
    return Finding("devices", PASS, ", ".join(devices))
