"""A real run of the backbone phase, a few steps long, and the main job with one client process at a time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel
from safetensors import safe_open
from simulation import BRIEF, Run, simulate

from privfedtalk_flare.evaluation.summary import load_summary
from privfedtalk_flare.federation.averaging import AveragingError
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.backbone import PARTS, job_of, train_backbone
from privfedtalk_flare.flare.recipe import PrivFedTalkRecipe
from privfedtalk_flare.generator.pipeline import ASSETS
from privfedtalk_flare.settings import (
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    PrivacySettings,
    RoundSettings,
    parse,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = BackboneSettings(codec_rounds=2, codec_steps=2, codec_batch=2, identity_rounds=1, identity_steps=2,
                         identity_batch=2, denoiser_rounds=1, denoiser_steps=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("backbone-run")
    PrivFedTalkRecipe("backbone", data=DataSettings(source="synthetic", people=3, clips=2, seconds=1.0),
                      privacy=PrivacySettings(mechanism="off"), backbone=SMALL, training=BRIEF, personalize=BRIEF,
                      rounds=RoundSettings(phases=("backbone",))).export(str(folder))
    return simulate(folder / "backbone", folder / "run")


def test_the_backbone_loads(run: Run) -> None:
    from privfedtalk_flare.evaluation.identity import load_embedder
    from privfedtalk_flare.generator.pipeline import load_pipeline

    assert run.code == 0, run.output[-3000:]
    folder = str(run.server / "backbone")
    assert len(load_pipeline(folder).digest) == 64
    assert load_embedder(folder) is not None


def test_the_sidecar_tells_how_it_was_made(run: Run) -> None:
    told = json.loads((run.server / "backbone" / "training.json").read_text(encoding="utf-8"))
    assert {part: len(losses) for part, losses in told["losses"].items()} == {"codec": 2, "identity": 1, "denoiser": 1}
    job = told["job"]
    assert job["backbone"]["codec_steps"] == 2 and {"seed", "people"} <= set(job["data"]) and "seed" in job["backbone"]
    assert told["command"].startswith("nvflare simulator ")
    assert len(told["config_sha256"]) == 64


def test_the_shipped_sidecar_is_of_the_job_in_the_checkout() -> None:
    """Settings that came later stand at their defaults, with which a backbone was trained before they came."""
    told = json.loads((ASSETS / "backbone" / "training.json").read_text(encoding="utf-8"))
    job = job_of(ROOT / "jobs" / "backbone" / "app" / "config")["job"]
    for name, settings in (("data", DataSettings), ("backbone", BackboneSettings)):
        assert parse(settings, told["job"][name], name) == parse(settings, job[name], name)
    assert told["config_sha256"] == hashlib.sha256(json.dumps(told["job"], sort_keys=True).encode()).hexdigest()
    assert told["command"] == "nvflare simulator jobs/backbone -w runs/backbone -n 4 -t 4"


def test_a_release_without_noise_is_booked(run: Run) -> None:
    ledger = run.workspace.parent / "run-state" / "site-1" / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    assert {line["phase"] for line in lines} == {"backbone"}
    assert all(line["release"]["noise_multiplier"] is None for line in lines)


def train(run: Path, fails_at: tuple[str, int] | None = None) -> tuple[dict, dict, list[tuple[str, int, set]]]:
    """Each round adds 1 to the one weight of its component; round `fails_at` has too few replies."""
    asked: list[tuple[str, int, set]] = []

    def ask(weights: dict, meta: dict, number: int) -> list[FLModel]:
        asked.append((meta[p.PHASE], number, set(weights)))
        return [FLModel(params={"w": weights.get(f"{meta[p.PHASE]}/w", np.zeros(3, np.float32)) + 1})]

    def average(replies: list[FLModel]) -> tuple[dict, float]:
        if asked[-1][:2] == fails_at:
            raise AveragingError("1 good replies, min_sites is 2")
        return replies[0].params, 0.25

    weights, losses = train_backbone(BackboneSettings(codec_rounds=2, identity_rounds=1, denoiser_rounds=3), ask,
                                     average, lambda text: None, run)
    return weights, losses, asked


def test_each_task_carries_all_that_is_trained_so_far(tmp_path: Path) -> None:
    weights, losses, asked = train(tmp_path)
    assert [float(weights[part]["w"][0]) for part in ("codec", "identity", "denoiser")] == [2, 1, 3]
    assert {part: len(told) for part, told in losses.items()} == {"codec": 2, "identity": 1, "denoiser": 3}
    before = {"codec": set(), "identity": {"codec/w"}, "denoiser": {"codec/w", "identity/w"}}
    assert all(names == before[part] | ({f"{part}/w"} if number > 1 else set()) for part, number, names in asked)


def test_a_round_with_too_few_replies_loses_nothing_that_was_trained(tmp_path: Path) -> None:
    with pytest.raises(AveragingError) as error:
        train(tmp_path, fails_at=("denoiser", 3))
    assert str(error.value) == (
        "denoiser round 3/3: 1 good replies, min_sites is 2; backbone_parts/ in the run folder keeps codec (2 of 2 "
        "rounds), identity (1 of 1 rounds), denoiser (2 of 3 rounds)")
    for part, value in (("codec", 2), ("identity", 1), ("denoiser", 2)):
        with safe_open(str(tmp_path / PARTS / f"{part}.safetensors"), framework="numpy") as file:
            assert file.get_tensor("w").tolist() == [value] * 3
            assert json.loads(file.metadata()["losses"]) == [0.25] * value
    with pytest.raises(AveragingError, match=r"codec round 1/2: .*; nothing is kept"):
        train(tmp_path / "other", fails_at=("codec", 1))


@pytest.mark.acceptance
def test_processes_that_restart_for_every_task_forget_nothing(untrained: Path, tmp_path: Path) -> None:
    PrivFedTalkRecipe("privfedtalk", data=DataSettings(source="synthetic", people=2, clips=2, seconds=1.0),
                      adapter=AdapterSettings(backbone=str(untrained)), training=BRIEF, personalize=BRIEF,
                      rounds=RoundSettings(rounds=2)).export(str(tmp_path))
    run = simulate(tmp_path / "privfedtalk", tmp_path / "run", threads=1, timeout=900)
    assert run.code == 0, run.output[-3000:]
    summary = load_summary(run.workspace)
    assert all(entry.snr is not None for entry in summary.rounds)
    assert summary.rows["personalized"]["psnr_mask"]["n"] == 4
