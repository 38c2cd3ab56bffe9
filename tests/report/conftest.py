"""A finished run and a study of two variants, with real films, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from privfedtalk_flare.cli import main
from privfedtalk_flare.data.media import write_mp4
from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.sheet import contact_sheet
from privfedtalk_flare.evaluation.summary import Round, Summary, save_summary
from privfedtalk_flare.study.plan import as_plain, load_study
from privfedtalk_flare.training.worklog import note


def films(folder: Path, key: str, bright: float = 0.9) -> None:
    """A clip, a copy of it that is less bright, and a sheet, as a site writes them."""
    clip = render_clip(Person.draw(1, int(key, 16)), 0, 1.0)
    made = (clip.frames * bright).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    write_mp4(folder / f"{key}.real.mp4", clip.frames, clip.audio)
    write_mp4(folder / f"{key}.mp4", made, clip.audio)
    Image.fromarray(clip.frames[0]).save(folder / f"{key}.reference.png")
    contact_sheet([clip.frames[:10], made[:10]], folder / f"{key}.png", ["real", "generated"])


def a_summary() -> Summary:
    def rows(psnr: float) -> dict:
        return {"psnr_mask": {"mean": psnr, "std": 1.0, "n": 4}, "sync": {"mean": 0.9, "std": None, "n": 3}}

    rounds = [Round(number, {"receivers": 2.0 * number, "server": "unbounded", "server_and_site": None}, 1e-5, 0.01,
                    {"wall": 20.0, "aggregate": 0.5}, {site: {"weight": 0.5, "score": 0.8, "count": 4.0, "bytes_up":
                    3.6e6, "bytes_down": 2e6} for site in ("site-1", "site-2")}, "Little is <learnt>.")
              for number in (1, 2)]
    return Summary({"ground_truth": rows(100.0), "shared": rows(27.0)}, rounds, 90112, 40.7, 300.0, 0.05, [], [],
                   {"sigma": 2.0}, ["site-2 refused: \"late\" & <slow>"])


def page_of(path: Path, *more: str) -> str:
    assert main(["report", str(path), *more]) == 0
    return (path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def run_page(run: Path) -> str:
    return page_of(run)


@pytest.fixture(scope="session")
def study_page(study: Path) -> str:
    return page_of(study)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("run")
    save_summary(a_summary(), workspace / "server" / "simulate_job" / "summary.json")
    for site, key in (("site-1", "0a"), ("site-2", "0b")):
        films(workspace / site / "simulate_job" / "videos", key)
        for number in (1, 2):
            note(workspace / site / "simulate_job", "adapter", 10.0, number, [0.5 / number, 0.7 / number])
            note(workspace / site / "simulate_job", "protect", 2.25)
    return workspace


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    (out / "study.yaml").write_text(yaml.safe_dump({
        "name": "small", "question": "Is <a> better & why?", "seeds": [1, 2], "corpus": {"sites": 2, "people": 2},
        "job": {"privacy": {"mechanism": "off"}}, "variants": {"a": {}, "b": {}, "later": {}},
        "compare": [["a", "b"]]}))
    read = load_study(str(out / "study.yaml"))
    rng = np.random.default_rng(0)
    for name, gain in (("a", 1.0), ("b", 0.0)):
        for seed in (1, 2):
            people = {site: {f"{site}{n}": {row: {"psnr_mask": 25 + gain + 0.1 * rng.normal(), "sync": 0.9}
                                            for row in ("ground_truth", "shared")} for n in range(2)}
                      for site in ("site-1", "site-2")}
            folder = out / "runs" / f"{name}-{seed}"
            for key in ("0a", "0b"):
                films(folder / "workspace" / "site-1" / "simulate_job" / "videos", key, 0.8 + 0.1 * gain - 0.02 * seed)
            (folder / "result.json").write_text(json.dumps({
                "variant": name, "seed": seed, "day": f"2026-01-0{2 + seed}", "seconds": 60.0, "people": people,
                "summary": a_summary().to_json() if name == "a" else None,
                "made_from": as_plain(read.variants[name]), "made_by": {"code": "0a1b"}}))
    return out
