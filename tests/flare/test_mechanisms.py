"""Real runs of what a job may choose beside the shipped mechanism: sampling with adaptive clipping; shared noise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from simulation import BRIEF, Run, simulate

from privfedtalk_flare.encryption.keys import load_secret
from privfedtalk_flare.encryption.packing import decrypt
from privfedtalk_flare.evaluation.summary import Summary, load_summary
from privfedtalk_flare.flare.chunks import from_params
from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe
from privfedtalk_flare.flare.record import read_round
from privfedtalk_flare.privacy.accountant import Release, views
from privfedtalk_flare.privacy.ledger import Ledger
from privfedtalk_flare.settings import (
    AdapterSettings,
    DataSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
)

PEOPLE = DataSettings(source="synthetic", people=2, clips=2, seconds=1.0)


def run_with(untrained: Path, folder: Path, privacy: PrivacySettings, mode: str, sites: int) -> tuple[Run, Summary]:
    PrivFedTalkRecipe("trial", data=PEOPLE, adapter=AdapterSettings(backbone=str(untrained)), training=BRIEF,
                      privacy=privacy, reliability=ReliabilitySettings(mode=mode),
                      rounds=RoundSettings(phases=("adapter",), rounds=3, min_sites=sites)).export(str(folder))
    run = simulate(folder / "trial", folder / "run", clients=sites)
    assert run.code == 0, run.output[-3000:]
    summary = load_summary(run.workspace)
    assert summary.notes == [] and [entry.round for entry in summary.rounds] == [1, 2, 3]
    return run, summary


def test_people_are_sampled_in_secret_and_c_follows_their_norms(untrained: Path, tmp_path: Path) -> None:
    """An untrained backbone moves nothing, so everybody is within C, and C falls. Nobody at all is sampled once in ten
    thousand rounds."""
    privacy = PrivacySettings(noise_multiplier=2.0, sampling=0.9, clip_norm=0.005, clip_quantile=0.5,
                              clip_bit_noise_multiplier=0.1)
    run, summary = run_with(untrained, tmp_path, privacy, "uniform", 2)
    norms = [entry.clip_norm for entry in summary.rounds]
    assert norms[0] == 0.005 and norms[0] > norms[1] > norms[2]
    everybody = views([Release(2.0, clip_bit_noise_multiplier=0.1)] * 3, 1e-5)["receivers"].epsilon
    assert all(0 < epsilon < everybody for epsilon in summary.rounds[-1].epsilon.values())
    assert "as long as nobody learns in which rounds a person was sampled" in summary.rounds[-1].words
    for site in ("site-1", "site-2"):
        entries = Ledger(tmp_path / "run-state" / site).entries
        assert [entry.clip_norm for entry in entries] == norms
        assert {entry.release.sampling for entry in entries} == {0.9}
        assert run.log(site).count("of 2 done") == 6  # everybody, so that no round is longer than another
    assert (summary.settings["q"], summary.settings["clip_quantile"]) == (0.9, 0.5)


def test_sites_add_a_share_each_and_whoever_takes_out_their_own_still_faces_what_was_promised(
        untrained: Path, tmp_path: Path) -> None:
    sigma, c, people, sites = 2.0, 0.01, 3, 3
    privacy = PrivacySettings(noise="distributed", honest_sites=2, people=people, noise_multiplier=sigma, clip_norm=c)
    run, summary = run_with(untrained, tmp_path, privacy, "sealed", sites)
    state, = (tmp_path / "run-state" / "server" / "rounds").iterdir()
    theta, _ = read_round(state)
    key = load_secret((run.workspace / "keys" / "client_context.tenseal").read_bytes())
    values = decrypt(from_params(theta), summary.values, key)
    others = math.sqrt(2) * sigma / math.sqrt(2) * c / people / sites  # of two sites, in the mean of three
    assert others == pytest.approx(sigma * c / people / sites)  # sigma times what one person moves the mean by
    assert values.std() == pytest.approx(math.sqrt(3 * 3 / 2) * others, rel=0.02)  # all three sites, over three rounds
    told = summary.rounds[-1].epsilon
    assert told["receivers"] == told["server"] < told["server_and_site"]
    assert "beside whoever looks" in summary.rounds[-1].words
    assert all(entry.trust == "distributed" for entry in Ledger(tmp_path / "run-state" / "site-1").entries)
