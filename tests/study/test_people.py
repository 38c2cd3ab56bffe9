"""A study's people: the same whoever asks, every site others, and damaged only where the study says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from privfedtalk_flare.data.clips import find_clips, load_clip
from privfedtalk_flare.data.sound import SAMPLES_PER_FRAME
from privfedtalk_flare.data.synthetic import Person, RenderedClip, render_clip
from privfedtalk_flare.study.people import OTHERS, damaged, prepare
from privfedtalk_flare.study.plan import CorpusSpec

PLAIN = CorpusSpec(sites=2, people=1, clips=(2, 3), seconds=1.0)


def clips(root: Path, site: str) -> list:
    return [load_clip(file) for file in find_clips(root / site)]


def test_each_site_has_its_own_people_and_as_many_clips_as_asked_for(tmp_path: Path) -> None:
    root = prepare(PLAIN, 3, tmp_path)
    one, two = clips(root, "site-1"), clips(root, "site-2")
    assert (len(one), len(two)) == (2, 3) and {clip.identity for clip in one} != {clip.identity for clip in two}
    stamp = (root / "site-1").stat().st_mtime_ns
    assert prepare(PLAIN, 3, tmp_path) == root and (root / "site-1").stat().st_mtime_ns == stamp
    assert prepare(PLAIN, 4, tmp_path) != root
    torn = next((root / "site-2").rglob("*.mp4"))
    torn.unlink()
    (root / "whole.json").unlink()  # stopped before it was whole
    assert len(clips(prepare(PLAIN, 3, tmp_path), "site-2")) == 3


@pytest.mark.parametrize("damage", ["noise", "flicker", "blur", "late", "mixed"])
def test_damage_is_done_to_the_last_sites_alone(tmp_path: Path, damage: str) -> None:
    whole = prepare(PLAIN, 3, tmp_path)
    broken = prepare(CorpusSpec(**{**vars(PLAIN), "damage": damage, "damaged": 1}), 3, tmp_path)
    for good, same in zip(clips(whole, "site-1"), clips(broken, "site-1"), strict=True):
        assert good.digest == same.digest
    pairs = list(zip(clips(whole, "site-2"), clips(broken, "site-2"), strict=True))
    change = [np.abs(a.frames.astype(float) - b.frames).mean() for a, b in pairs]
    if damage == "late":
        assert max(change) == 0
        for a, b in pairs:
            assert np.abs(b.audio[:3000]).max() < 0.02 and np.abs(a.audio - b.audio).max() > 0.05
    elif damage == "mixed":
        assert change[0] == change[2] == 0 and change[1] > 5
        other = render_clip(Person.draw(3, OTHERS + 1000, 1.0), 1, 1.0)
        assert np.abs(pairs[1][1].frames.astype(float) - other.frames).mean() < 3
    else:
        assert min(change) > 1
    jumps = [np.abs(np.diff(clip.frames.mean((1, 2, 3)))).mean() for _, clip in pairs]
    assert (min(jumps) > 3) == (damage == "flicker")


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_damage_is_as_strong_as_it_says(strength: float) -> None:
    rng = np.random.default_rng(0)
    frames = np.full((60, 16, 16, 3), 128, np.uint8)
    frames[:, ::4, ::4] = rng.integers(100, 156, (60, 4, 4, 3))
    clip = RenderedClip(frames, rng.normal(0, 0.1, 60 * SAMPLES_PER_FRAME).astype(np.float32), np.zeros(60))

    def changed(damage: str) -> np.ndarray:
        return damaged(clip, damage, strength, np.random.default_rng(1)).frames.astype(float) - frames

    assert changed("noise").std() == pytest.approx(24 * strength, rel=0.02)
    assert np.abs(changed("flicker").mean((1, 2, 3))).max() == pytest.approx(20 * strength, rel=0.1)
    assert changed("flicker").std((1, 2, 3)).max() < 0.5  # a frame is lighter or darker as a whole
    blurred = gaussian_filter(frames.astype(np.float64), (0, 1.5 * strength, 1.5 * strength, 0))
    assert np.abs(frames + changed("blur") - blurred).max() < 0.6
    late, shift = damaged(clip, "late", strength, rng), round(6 * strength) * SAMPLES_PER_FRAME
    assert np.array_equal(late.audio[shift:], clip.audio[:-shift]) and not late.audio[:shift].any()
    assert np.array_equal(late.frames, frames) and damaged(clip, "mixed", strength, rng) is clip
