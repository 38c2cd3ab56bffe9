"""The study's own files, as a study would call them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from privfedtalk_flare.plugins import load_function


def test_clips_are_listed_by_identity(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "a/1.mp4", "a/note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = load_function("study_clips.find_clips", "data.clip_source")(tmp_path)
    assert [(clip.identity, clip.path.name) for clip in found] == [("a", "1.mp4"), ("b", "2.mp4")]


def test_the_signal_is_the_mixture_of_its_parts() -> None:
    score = load_function("study_reliability.score", "reliability.signal")
    real = np.zeros((3, 16, 16, 3), np.uint8)
    real[1, 8:] = 40
    mask = np.zeros((16, 16), bool)
    mask[8:] = True
    same = np.eye(4)[:1].repeat(3, 0)
    parts = {"generated": real, "unheard": None, "real": real, "mask": mask, "embeddings": same, "reference": same,
             "tau": 4.0, "lip_sync": 0.0}
    assert score(**parts, alpha=1.0) == pytest.approx(1.0)
    assert score(**{**parts, "embeddings": -same}, alpha=1.0) == pytest.approx(0.0)
    still = real[:1].repeat(3, 0)
    assert score(**{**parts, "generated": still}, alpha=0.5) == pytest.approx(0.5)
    heard = {**parts, "unheard": still, "lip_sync": 0.5}
    assert score(**heard, alpha=1.0) == pytest.approx(1.0)
    assert score(**{**heard, "generated": still}, alpha=1.0) == pytest.approx(0.5)
