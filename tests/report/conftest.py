"""A finished run and a study of two variants, with real films, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from privfedtalk_flare.data.media import write_mp4
from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.evaluation.sheet import contact_sheet
from privfedtalk_flare.evaluation.summary import Round, Summary, save_summary
from privfedtalk_flare.study.plan import as_plain, load_study


def films(folder: Path, key: str) -> None:
    """A clip, a poor copy of it and a sheet, as a site writes them."""
    clip = render_clip(Person.draw(1, int(key, 16)), 0, 1.0)
    made = (clip.frames * 0.9).astype(np.uint8)
    folder.mkdir(parents=True)
    write_mp4(folder / f"{key}.real.mp4", clip.frames, clip.audio)
    write_mp4(folder / f"{key}.mp4", made, clip.audio)
    contact_sheet([clip.frames[:10], made[:10]], folder / f"{key}.png", ["real", "generated"])


def a_summary() -> Summary:
    def rows(psnr: float) -> dict:
        return {"psnr_mask": {"mean": psnr, "std": 1.0, "n": 4}, "sync": {"mean": 0.9, "std": None, "n": 4}}

    rounds = [Round(number, {"receivers": 2.0 * number, "server": None, "server_and_site": 2.0 * number}, 1e-5, 0.01,
                    {"wall": 20.0, "aggregate": 0.5}, {site: {"weight": 0.5, "score": 0.8, "count": 4.0, "bytes_up":
                    3.6e6, "bytes_down": 2e6} for site in ("site-1", "site-2")}, "Little is <learnt>.")
              for number in (1, 2)]
    return Summary({"ground_truth": rows(100.0), "shared": rows(27.0)}, rounds, 90112, 40.7, 300.0, 0.05, [], [],
                   {"sigma": 2.0}, ["site-2 refused: \"late\" & <slow>"])


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("run")
    save_summary(a_summary(), workspace / "server" / "simulate_job" / "summary.json")
    for site, key in (("site-1", "0a"), ("site-2", "0b")):
        films(workspace / site / "simulate_job" / "videos", key)
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
            films(folder / "workspace" / "site-1" / "simulate_job" / "videos", f"{seed}{name}")
            (folder / "result.json").write_text(json.dumps({
                "variant": name, "seed": seed, "seconds": 60.0, "summary": None, "people": people,
                "made_from": as_plain(read.variants[name])}))
    return out
