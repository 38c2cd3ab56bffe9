"""What protection costs: clip, noise, ledger and egress against a round of the shipped job, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chain import HEADER, Site, person
from nvflare.apis.dxo import DXO, DataKind

from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.filters import EgressFilter, PrivacyFilter, ReserveRelease
from privfedtalk_flare.flare.recipe import VARIANTS, PrivFedTalkRecipe
from privfedtalk_flare.flare.replies import raw_reply
from privfedtalk_flare.flare.steps import StepLog
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.site import SiteWork

pytestmark = pytest.mark.acceptance

REPEATS = 15
MOST = 0.05
ROUNDS_BEFORE = 100
"""Lines in the ledger before the measured ones: a site's account grows with every job."""


def timed(call: Callable[[], object], into: list[float]) -> object:
    began = time.perf_counter()
    result = call()
    into.append(time.perf_counter() - began)
    return result


def test_protection_takes_at_most_a_twentieth_of_a_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = PrivFedTalkRecipe("privfedtalk", **VARIANTS["privfedtalk"])
    place = SitePlace("site-1", None, tmp_path / "state", tmp_path / "run")
    work = SiteWork("site-1", place, job.data, job.adapter, job.training, job.personalize, job.reliability,
                    job.backbone, lambda text: None)
    size, m = work.spec.size, work.prepare()
    work.adapter_round(np.zeros(size, np.float32), 1)  # clips are cached then, as in every round but the first
    training: list[float] = []
    timed(lambda: work.adapter_round(np.zeros(size, np.float32), 2), training)

    site = Site(tmp_path, size=size)
    people = [person(number, size=size) for number in range(m)]
    parts: dict[str, list[float]] = {}
    for number in range(ROUNDS_BEFORE + REPEATS):
        measured = parts if number >= ROUNDS_BEFORE else {}
        header = {**HEADER, p.NONCE: f"{number:04x}"}
        measure(site, people, header, measured)
    took = {name: statistics.median(times) for name, times in parts.items()}
    protection = took["ReserveRelease"] + took["PrivacyFilter"] + 2 * took["EgressFilter"]  # once more by privacy.json
    whole = training[0] + sum(took.values()) + took["EgressFilter"]
    with capsys.disabled():
        print(f"\ntraining {training[0]:.2f} s; " + ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in took.items())
              + f"; protection {protection / whole:.2%} of a round of {m} people")
    assert protection <= MOST * whole


def measure(site: Site, people: list[object], header: dict[str, object], parts: dict[str, list[float]]) -> None:
    """One round through the site's real filters, each timed under its class's name."""
    task = {**header, p.ZERO: True, **StepLog().told()}  # with what the norm check reads
    shareable = DXO(DataKind.WEIGHTS, data={}, meta=task).to_shareable()
    for one in site.data:
        shareable = timed(lambda f=one, s=shareable: f.process(s, site.ctx), parts.setdefault(type(one).__name__, []))
    assert isinstance(site.data[-1], ReserveRelease) and isinstance(site.result[0], PrivacyFilter)
    assert isinstance(site.egress, EgressFilter)
    shareable = raw_reply(people, {**header, p.VALUES: site.size, p.BUSY: [[1, 2]]})
    for one in [*site.result, site.egress]:
        shareable = timed(lambda f=one, s=shareable: f.process(s, site.ctx), parts.setdefault(type(one).__name__, []))
