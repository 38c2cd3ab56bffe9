"""What breaks in a deployment, each with real processes: nothing is lost, nothing is spent in secret, and the next job
goes on. One server and three sites serve all of these tests; a test leaves them running as it found them."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment, brief_job, started, wait_for

from privfedtalk_flare.cli import main
from privfedtalk_flare.settings import TrainingSettings

pytestmark = pytest.mark.acceptance

SITES = ("site-1", "site-2", "site-3")


@pytest.fixture(scope="module")
def poc(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with started(tmp_path_factory.mktemp("poc"), 3) as deployment:
        yield deployment


def submit(poc: Deployment, folder: Path, **settings: Any) -> str:
    """Submits a brief job without `validate`, the slow phase, whose task waits 45 s at most, unless `settings` say
    otherwise."""
    return poc.submit(brief_job(folder, **{"timeout": 45.0, "phases": ("adapter", "personalize"), **settings}))


def spent(poc: Deployment, job: str) -> dict[str, int]:
    """Releases of a job in each site's ledger."""
    return {site: sum(line["job"] == job for line in poc.releases(site)) for site in SITES}


def assert_ledgers_hold(poc: Deployment) -> None:
    """Every ledger is whole, and as far as its anchor and the server say: the site's preflight passes."""
    for site in SITES:
        assert main(["check", str(poc.kits / site)]) == 0


def adapters(poc: Deployment, site: str) -> dict[str, bytes]:
    folder = poc.state(site) / "identities"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def assert_well(poc: Deployment, job: str, rounds: int) -> dict[str, Any]:
    """The job has finished well, with that many rounds; its summary."""
    assert poc.ended(job) == "FINISHED:COMPLETED"
    summary = poc.summary(job)
    assert [entry["round"] for entry in summary["rounds"]] == list(range(1, rounds + 1))
    return summary


def test_a_site_whose_machine_dies_is_waited_for_no_longer_and_takes_part_in_the_next_job(poc: Deployment,
                                                                                         tmp_path: Path) -> None:
    first = submit(poc, tmp_path, rounds=1)
    assert_well(poc, first, 1)
    own = adapters(poc, "site-3")
    assert len(own) == 2
    job = submit(poc, tmp_path, rounds=2, resume=first)  # from round 1 on
    poc.until(job, "goes on from job")
    wait_for(lambda: spent(poc, job)["site-3"] == 1, "site-3 to train round 2", 120)
    poc.kill("site-3")
    poc.start("site-3")
    assert poc.ended(job).startswith("FINISHED")
    summary = poc.summary(job)
    assert set(summary["rounds"][1]["sites"]) == {"site-1", "site-2"}
    assert adapters(poc, "site-3") == own
    assert_ledgers_hold(poc)
    after = submit(poc, tmp_path, rounds=3, resume=job)
    summary = assert_well(poc, after, 3)
    assert set(summary["rounds"][2]["sites"]) == set(SITES)
    assert spent(poc, job)["site-3"] == spent(poc, after)["site-3"] == 1  # what was booked and never sent stays booked
    assert_ledgers_hold(poc)


def test_a_site_whose_process_dies_ends_the_job_and_its_clone_goes_on(poc: Deployment, tmp_path: Path) -> None:
    job = submit(poc, tmp_path, rounds=2)
    poc.until(job, "round 1/2")
    poc.job_process("site-3", job).kill()
    assert poc.ended(job) != "FINISHED:COMPLETED"
    again = poc.clone(job)
    summary = assert_well(poc, again, 2)
    assert set(summary["rounds"][1]["sites"]) == set(SITES)
    assert spent(poc, again) == dict.fromkeys(SITES, 1)
    assert_ledgers_hold(poc)


def test_a_site_that_does_not_answer_is_left_behind_and_takes_part_again(poc: Deployment, tmp_path: Path) -> None:
    job = submit(poc, tmp_path, rounds=2, timeout=60.0)
    poc.until(job, "phase adapter begins")
    wait_for(lambda: spent(poc, job)["site-3"] == 1, "site-3 to train round 1", 120)
    process = poc.job_process("site-3", job)
    process.send_signal(signal.SIGSTOP)
    poc.until(job, "round 1/2")
    process.send_signal(signal.SIGCONT)
    summary = assert_well(poc, job, 2)
    assert set(summary["rounds"][0]["sites"]) == {"site-1", "site-2"}
    assert set(summary["rounds"][1]["sites"]) == set(SITES)
    # FLARE's own client asks before it sends, and drops what nobody waits for; test_asking.py has one that does not.
    assert len(summary["adapters"]) == 6
    assert spent(poc, job) == dict.fromkeys(SITES, 2)


def test_too_few_sites_end_the_phase_in_order_and_the_result_is_kept(poc: Deployment, tmp_path: Path) -> None:
    job = submit(poc, tmp_path, rounds=3, min_sites=3, timeout=60.0)
    poc.until(job, "round 1/3")
    process = poc.job_process("site-3", job)
    process.send_signal(signal.SIGSTOP)
    poc.until(job, "phase adapter ended early: 2 good replies, min_sites is 3")
    process.send_signal(signal.SIGCONT)
    summary = assert_well(poc, job, 1)
    assert len(summary["adapters"]) >= 4  # the next phase went on with what there was


def test_a_site_out_of_memory_says_so_and_lives_on(poc: Deployment, tmp_path: Path) -> None:
    """Its memory ends when training begins: a step of 32 windows takes some 2 GiB."""
    job = submit(poc, tmp_path, training=TrainingSettings(steps=2, batch=32), rounds=2, timeout=120.0)
    log = poc.kits / "site-3" / job / "log.txt"
    wait_for(lambda: log.is_file() and "training clips," in log.read_text(encoding="utf-8"), "site-3's clips", 120,
             every=0.02)
    process = poc.job_process("site-3", job)
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + 200 * 2**20, resource.RLIM_INFINITY))
    poc.until(job, "site-3 refused: out_of_memory")
    process.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "set low_memory: true in this site's privfedtalk.yaml" in log.read_text(encoding="utf-8")
    summary = assert_well(poc, job, 2)
    assert set(summary["rounds"][0]["sites"]) == {"site-1", "site-2"}
    assert set(summary["rounds"][1]["sites"]) == set(SITES)


def test_a_full_disk_at_the_server_leaves_the_last_rounds_state(poc: Deployment, tmp_path: Path) -> None:
    job = submit(poc, tmp_path, rounds=3)
    poc.until(job, "round 1/3")
    state = poc.state("localhost") / "rounds" / f"{job}.safetensors"
    before = state.read_bytes()
    poc.job_process("localhost", job).rlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    summary = assert_well(poc, job, 1)
    assert any("File too large" in note for note in summary["notes"])
    assert state.read_bytes() == before and list(state.parent.glob("*.partial")) == []
    assert_well(poc, poc.clone(job), 3)


def test_two_jobs_at_once_at_one_site_share_a_ledger_and_both_are_charged(poc: Deployment, tmp_path: Path) -> None:
    jobs = [submit(poc, tmp_path, rounds=2, timeout=120.0) for _ in range(2)]
    wait_for(lambda: all(poc.status(job) == "RUNNING" for job in jobs), "both jobs to run at once", 60, every=1)
    before = {site: len(poc.releases(site)) for site in SITES}
    for job in jobs:
        assert_well(poc, job, 2)
        assert spent(poc, job) == dict.fromkeys(SITES, 2)
    order = [line["job"] for line in poc.releases("site-1")][before["site-1"]:]
    assert set(order) == set(jobs)
    assert_ledgers_hold(poc)


def test_a_server_that_dies_in_a_round_loses_that_round_alone_and_sites_charge_its_repeat(poc: Deployment,
                                                                                          tmp_path: Path) -> None:
    job = submit(poc, tmp_path, rounds=2)
    poc.until(job, "round 1/2")
    wait_for(lambda: spent(poc, job) == dict.fromkeys(SITES, 2), "all sites to book round 2", 120)
    poc.kill("localhost")
    poc.start("localhost")
    wait_for(lambda: poc.connected() == set(SITES), "all sites to be back", 180, every=3)
    again = poc.clone(job)
    poc.until(again, f"goes on from job {job} after round 1")
    summary = assert_well(poc, again, 2)
    assert spent(poc, again) == dict.fromkeys(SITES, 1)  # round 2 is a new release, beside the one that was lost
    first, second = (entry["epsilon"]["receivers"] for entry in summary["rounds"])
    assert second > first
    assert_ledgers_hold(poc)
