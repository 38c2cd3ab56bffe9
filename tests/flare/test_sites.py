"""Real runs in which sites lack clips, have bad ones, or bring their own code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from simulation import BRIEF, Run, simulate

from privfedtalk_flare.data.synthetic import Person, write_corpus
from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe, study_files
from privfedtalk_flare.settings import AdapterSettings, RoundSettings

SIGNAL = '''
def score(**measured):
    """A study's own signal: every identity is worth the same."""
    return 0.3125
'''


@pytest.fixture(scope="module")
def run(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """site-1: one person with two good clips and a truncated one; site-2: an empty corpus; a changed custom file."""
    folder = tmp_path_factory.mktemp("sites")
    write_corpus(folder / "corpus" / "site-1", [Person.draw(7, 0)], clips=2, seconds=1.2)
    good = next((folder / "corpus" / "site-1").glob("*/clip-00.mp4"))
    good.with_name("clip-99.mp4").write_bytes(good.read_bytes()[:2000])
    (folder / "corpus" / "site-2").mkdir()
    (folder / "custom").mkdir()
    for file in study_files():
        shutil.copy(file, folder / "custom")
    (folder / "custom" / "study_reliability.py").write_text(SIGNAL, encoding="utf-8")
    PrivFedTalkRecipe("study", adapter=AdapterSettings(backbone=str(untrained)), training=BRIEF, personalize=BRIEF,
                      rounds=RoundSettings(phases=("adapter",), rounds=1, min_sites=1),
                      custom=folder / "custom").export(str(folder))
    return simulate(folder / "study", folder / "run", local=f"corpus: {folder / 'corpus'}/{{site}}\n")


def test_the_job_goes_on_without_the_site_that_has_no_clips(run: Run) -> None:
    assert run.code == 0, run.output[-3000:]
    summary = load_summary(run.workspace)
    assert set(summary.rounds[0].sites) == {"site-1"}
    assert "site-2 refused: no_clips" in summary.notes


def test_the_reason_stays_in_the_sites_own_log(run: Run) -> None:
    assert "corpus/site-2" in run.log("site-2")
    server = (run.workspace / "server" / "log.txt").read_text(encoding="utf-8")
    assert "no_clips" in server
    assert "corpus" not in server and "clip-99" not in server
    errors = run.workspace / "site-2" / "error_log.txt"  # what provisioned sites stream to the server
    assert "corpus" not in errors.read_text(encoding="utf-8")


def test_a_bad_clip_is_named_counted_and_skipped(run: Run) -> None:
    log = run.log("site-1")
    assert "clip-99.mp4" in log
    assert "1 people, 1 training clips, 1 held out, 1 skipped" in log


def test_a_changed_custom_file_changes_the_run(run: Run) -> None:
    assert load_summary(run.workspace).rounds[0].sites["site-1"]["score"] == 0.3125
