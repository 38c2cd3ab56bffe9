"""The paper's 3,532 clients fit on a few sites: 256 identities on four, each trained and clipped on their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from simulation import simulate

from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe
from privfedtalk_flare.settings import (
    AdapterSettings,
    DataSettings,
    ReliabilitySettings,
    RoundSettings,
    TrainingSettings,
)

A_SITE, SITES = 64, 4
MOST_MEMORY = 2.0
"""GiB: a process of FLARE and torch, and one person at a time."""

pytestmark = pytest.mark.acceptance


def test_256_identities_on_four_sites_leave_four_sums(untrained: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    PrivFedTalkRecipe("many", data=DataSettings(source="synthetic", people=A_SITE, clips=2, seconds=1.0),
                      adapter=AdapterSettings(backbone=str(untrained)), training=TrainingSettings(steps=1, batch=1),
                      reliability=ReliabilitySettings(mode="counts"),
                      rounds=RoundSettings(phases=("adapter",), rounds=2)).export(str(tmp_path))
    run = simulate(tmp_path / "many", tmp_path / "run", clients=SITES, threads=2, local="low_memory: true\n",
                   timeout=1500)
    assert run.code == 0, run.output[-3000:]
    _, second = load_summary(run.workspace).rounds
    assert len(second.sites) == SITES and "256 people" in second.words
    for told in second.sites.values():
        assert told["bytes_up"] < 42 * 90_112  # one sum a site, however many people it has
    for number in range(1, SITES + 1):
        lines = (tmp_path / "run-state" / f"site-{number}" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["round"] for line in lines] == [1, 2]  # a release a round, not one a person
    peaks = []
    for number in range(1, SITES + 1):
        log = (run.workspace / f"site-{number}" / "log.txt").read_text(encoding="utf-8")
        done = re.findall(rf"round (\d): person (\d+) of {A_SITE} done", log)
        assert sorted(done) == sorted((str(r), str(n)) for r in (1, 2) for n in range(1, A_SITE + 1))
        assert "failed" not in log
        peaks.append(float(re.findall(r"at most ([0-9.]+) GiB of memory so far", log)[-1]))
    peak = max(peaks)
    assert peak < MOST_MEMORY
    with capsys.disabled():
        print(f"\n256 identities: round 2 took {second.seconds['wall']:.0f} s, "
              f"{2 * second.seconds['wall'] / (A_SITE * SITES):.2f} s of a core an identity, "
              f"at most {peak:.2f} GiB a site")
