"""A study's people: rendered into a corpus for each site, some of it damaged in a way that is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from privfedtalk_flare.data.clips import save_aperture
from privfedtalk_flare.data.media import write_mp4
from privfedtalk_flare.data.sound import FPS, SAMPLES_PER_FRAME
from privfedtalk_flare.data.synthetic import Person, RenderedClip, render_clip, renderer_digest
from privfedtalk_flare.study.plan import MOST_PEOPLE, CorpusSpec

OTHERS = 500_000
"""Numbers from here on are of people whose clips lie in somebody else's folder."""
STRENGTHS = {"noise": 24.0, "flicker": 20.0, "blur": 1.5, "late": 6}
"""Strength 1 of each damage: grey levels, grey levels, pixels, frames."""


def prepare(corpus: CorpusSpec, seed: int, folder: Path) -> Path:
    """The folder, under `folder`, with a corpus for each site, rendered if it is not there whole.

    A clip is damaged as it would be in life: frames and sound both as trained on and as held out; the aperture beside
    it stays that of the frames.
    """
    settings = {name: value for name, value in asdict(corpus).items() if name != "measured"}
    made_from = json.dumps({**settings, "seed": seed, "damages": STRENGTHS,
                            "renderer": renderer_digest(Person.draw(seed, 0, corpus.accent))}, sort_keys=True)
    root = folder / f"{seed}-{hashlib.sha256(made_from.encode()).hexdigest()[:10]}"
    if (root / "whole.json").is_file():
        return root
    for number, site in enumerate(corpus.names):
        damage = corpus.damage if site not in corpus.good else "none"
        for index in range(corpus.people):
            person = Person.draw(seed, number * MOST_PEOPLE + index, corpus.accent)
            for clip in range(corpus.clips_of(number)):
                path = root / site / person.name / f"clip-{clip:02d}.mp4"
                if path.exists():
                    continue
                shown = person
                if damage == "mixed" and clip % 2:  # every second clip is of somebody else
                    shown = Person.draw(seed, OTHERS + number * MOST_PEOPLE + index, corpus.accent)
                rng = np.random.default_rng((seed, number, index, clip))
                made = damaged(render_clip(shown, clip, corpus.seconds), damage, corpus.strength, rng)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_aperture(path, made.aperture)
                write_mp4(path, made.frames, made.audio, fps=FPS, metadata={"comment": "synthetic person"})
    (root / "whole.json").write_text(made_from, encoding="utf-8")
    return root


def damaged(clip: RenderedClip, damage: str, strength: float, rng: np.random.Generator) -> RenderedClip:
    """The clip with what is wrong with it at this strength; as it is where the damage is to other clips, or none."""
    if damage == "late":
        shift = round(STRENGTHS["late"] * strength) * SAMPLES_PER_FRAME
        audio = np.concatenate([np.zeros(shift, np.float32), clip.audio])[:len(clip.audio)]
        return RenderedClip(clip.frames, audio, clip.aperture)
    if damage not in _ON_FRAMES:
        return clip
    frames = _ON_FRAMES[damage](clip.frames.astype(np.float32), strength, rng)
    return RenderedClip(np.clip(frames, 0, 255).round().astype(np.uint8), clip.audio, clip.aperture)


def _noisy(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return frames + rng.normal(0, STRENGTHS["noise"] * strength, frames.shape)


def _flickering(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return frames + STRENGTHS["flicker"] * rng.uniform(-strength, strength, (len(frames), 1, 1, 1))


def _blurred(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return gaussian_filter(frames, (0, *(STRENGTHS["blur"] * strength,) * 2, 0))


_ON_FRAMES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "noise": _noisy, "flicker": _flickering, "blur": _blurred}
