"""Renders people who speak: a corpus of MP4 clips for trials, each with the true mouth aperture beside it.

People and what they say follow from (seed, person index) alone, so a corpus can be rendered again anywhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from privfedtalk_flare.data.portrait import SIZE, Look, Motion, paint
from privfedtalk_flare.data.sound import FPS
from privfedtalk_flare.data.speech import Speech, Voice, speak


@dataclass(frozen=True)
class Person:
    """A rendered person: the look, the voice, and the seed that all clips of this person start from."""

    name: str
    look: Look
    voice: Voice
    seed: tuple[int, int]

    @staticmethod
    def draw(seed: int, index: int, accent: float = 0.0) -> Person:
        rng = np.random.default_rng((seed, index))
        look, voice = Look.draw(rng), Voice.draw(rng)
        return Person(f"person-{index:05d}", look, replace(voice, accent=accent), (seed, index))


@dataclass(frozen=True)
class RenderedClip:
    """`frames` (F, size, size, 3) uint8, `audio` (F * 640,) float32 at 16 kHz, `aperture` (F,) float32 in [0, 1]."""

    frames: np.ndarray
    audio: np.ndarray
    aperture: np.ndarray


def render_clip(person: Person, clip: int, seconds: float, size: int = SIZE) -> RenderedClip:
    """Renders clip number `clip` of a person; the same arguments give the same clip."""
    rng = np.random.default_rng((*person.seed, 1 + clip))
    speech = speak(rng, person.voice, seconds)
    return RenderedClip(paint(person.look, draw_motion(rng, speech), size), speech.audio, speech.aperture)


def renderer_digest(person: Person, size: int = SIZE) -> str:
    """Eight hex digits that are others once the renderer makes something else of this person: whoever keeps rendered
    films names them by it, so that those of an older version are not taken for new ones. Coarse (grey levels of blocks,
    loudness of tenths of a second): the last bits, in which processors differ, do not change it."""
    start = render_clip(person, 0, 2.0, size)  # shorter ones can be all pause, which shows no accent
    block = size // 8
    blocks = start.frames[::5, :8 * block, :8 * block].reshape(-1, 8, block, 8, block, 3).mean((2, 4))
    loudness = np.sqrt((start.audio[:len(start.audio) // 20 * 20].reshape(20, -1) ** 2).mean(1))
    coarse = f"{size} {blocks.round().astype(int).tolist()} {(loudness * 100).round().astype(int).tolist()}"
    return hashlib.sha256(coarse.encode()).hexdigest()[:8]


def draw_motion(rng: np.random.Generator, speech: Speech) -> Motion:
    """Head pose, gaze, brows and blinks, all independent of what is said."""
    frames = len(speech.aperture)
    return Motion(x=_wander(rng, frames, 0.07), y=_wander(rng, frames, 0.042), tilt=_wander(rng, frames, 0.06),
                  turn=_wander(rng, frames, 0.7), blink=_blinks(rng, frames), gaze=_wander(rng, frames, 0.8),
                  brow=_wander(rng, frames, 0.7), aperture=speech.aperture, width=speech.width)


def _wander(rng: np.random.Generator, frames: int, size: float) -> np.ndarray:
    """(F,) in [-size, size]: moves to a new place, rests there, moves on, as heads do."""
    at, values = 0, [rng.uniform(-size, size)]
    stops = [0]
    while at < frames:
        rest, move = rng.integers(8, 30), rng.integers(8, 20)
        stops += [at + rest, at + rest + move]
        values += [values[-1], rng.uniform(-size, size)]
        at += rest + move
    return gaussian_filter1d(np.interp(np.arange(frames), stops, values), 2.0).astype(np.float32)


def _blinks(rng: np.random.Generator, frames: int) -> np.ndarray:
    """(F,) in [0, 1]: a blink of about 200 ms every two to four seconds."""
    out = np.zeros(frames)
    at = rng.integers(5, 2 * FPS)
    while at < frames:
        out += np.exp(-(((np.arange(frames) - at) / 1.6) ** 2))
        at += rng.integers(2 * FPS, 4 * FPS)
    return np.clip(out, 0, 1).astype(np.float32)


def write_corpus(folder: Path, people: list[Person], clips: int, seconds: float, size: int = SIZE) -> list[Path]:
    """Writes `<folder>/<person>/<clip>.mp4` with `<clip>.aperture.npy` beside each; clips that exist are kept."""
    from privfedtalk_flare.data.clips import save_aperture
    from privfedtalk_flare.data.media import write_mp4

    paths = []
    for person in people:
        for clip in range(clips):
            path = folder / person.name / f"clip-{clip:02d}.mp4"
            paths.append(path)
            if path.exists():
                continue
            rendered = render_clip(person, clip, seconds, size)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_aperture(path, rendered.aperture)
            write_mp4(path, rendered.frames, rendered.audio, fps=FPS, metadata={"comment": "synthetic person"})
    return paths
