"""Measures one person's held-out clips, row by row, and writes sample videos. Runs at the site; numbers leave it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from privfedtalk_flare.data.clips import Clip
from privfedtalk_flare.data.media import SYNTHETIC_TAG, write_mp4
from privfedtalk_flare.evaluation.aperture import mouth_aperture
from privfedtalk_flare.evaluation.metrics import clip_metrics
from privfedtalk_flare.evaluation.sheet import contact_sheet
from privfedtalk_flare.evaluation.temporal import optical_flow
from privfedtalk_flare.files import replaced, write_whole
from privfedtalk_flare.generator.pipeline import feather
from privfedtalk_flare.training import worklog
from privfedtalk_flare.training.corpus import IdentityClips

FILE_NAME = "validation.json"
S = TypeVar("S")
ADAPTERS = ("backbone", "shared", "personalized")


@dataclass(frozen=True)
class Validation:
    """`rows`: row -> metric -> one value a person (PRIVATE: only means over people leave); `videos`: relative names."""

    rows: dict[str, dict[str, list[float]]]
    videos: list[str]


@dataclass(frozen=True)
class PersonValidation:
    """`rows`: row -> metric -> this person's mean over held-out clips, `nan` where none defines it. PRIVATE."""

    rows: dict[str, dict[str, float]]
    videos: list[str]


def save_validation(folder: Path, people: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Path:
    """Writes `validation.json`: person (digest) -> row -> metric -> value, null where a clip leaves it undefined.
    PRIVATE to the site, as the videos beside it: file mode 0600."""
    told = {person: {row: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
                     for row, metrics in rows.items()} for person, rows in sorted(people.items())}
    return write_whole(folder / FILE_NAME, json.dumps(told, indent=1, allow_nan=False).encode())


def write_board(output: Path, people: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Writes `tb_events`, PRIVATE to the site (folder mode 0700): each person's contact sheet, from the videos in
    `output`, by their opaque name, the means of every row over `people`, and losses and seconds of the work so far."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    folder = output / "tb_events"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with SummaryWriter(str(folder)) as board:
        for key in people:
            sheet = np.asarray(Image.open(output / "videos" / f"{key}.png"))
            board.add_image(f"people/{key}", sheet, dataformats="HWC")
        for row in {row: None for rows in people.values() for row in rows}:
            told = [rows[row] for rows in people.values() if row in rows]
            for name in told[0]:
                if math.isfinite(mean := _mean([metrics[name] for metrics in told])):
                    board.add_scalar(f"metric/{row}/{name}", mean, 0)
        for step, told in enumerate(worklog.read_notes(output)):
            for what in ("loss", "seconds"):
                if what in told:
                    board.add_scalar(f"{what}/{told['part']}", told[what], told.get("round", step))


def pixel_mask(size: int) -> np.ndarray:
    """(size, size) bool: where the lower face is painted and nothing of the real frame shines through the feather."""
    return feather(size)[..., 0] == 1


def validate_person(person: IdentityClips, prepare: Callable[[np.ndarray, np.ndarray, np.ndarray], S],
                    generate: Callable[[str, S], np.ndarray],
                    embed: Callable[[np.ndarray], np.ndarray], folder: Path, size: int,
                    adapters: Sequence[str] = ADAPTERS) -> PersonValidation:
    """Measures the rows of one person on their clips for it; the last of `adapters` makes the sample video in `folder`.

    `prepare(base, reference, audio)` gives the scene of which `generate(adapter, scene)` makes (F, S, S, 3) uint8;
    `embed(frames)` -> (F, E).
    """
    measured: dict[str, list[dict[str, float]]] = {}
    for place, clip in enumerate(person.measured):
        rows = {"ground_truth": clip.frames, "copy_reference": np.repeat(person.reference[None], len(clip.frames), 0)}
        scene = prepare(clip.frames, person.reference, clip.audio)
        rows |= {adapter: generate(adapter, scene) for adapter in adapters}
        embeddings, flow = embed(clip.frames), optical_flow(clip.frames)
        for row, frames in rows.items():
            measured.setdefault(row, []).append(_measure(frames, clip, flow, embed, embeddings, size))
        if place == 0:
            sample = rows[adapters[-1]]
    means = {row: {name: _mean([m[name] for m in of]) for name in of[0]} for row, of in measured.items()}
    return PersonValidation(means, _write_samples(person, sample, folder))


def _mean(values: Sequence[float]) -> float:
    """The mean over the clips that define a metric: one that leaves it undefined does not take it from the others."""
    defined = [value for value in values if math.isfinite(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _measure(frames: np.ndarray, clip: Clip, flow: np.ndarray, embed: Callable[[np.ndarray], np.ndarray],
             embeddings: np.ndarray, size: int) -> dict[str, float]:
    unknown = np.full(len(clip.frames), np.nan, np.float32)  # without a truth the fit, the slow part, tells nothing
    truth, aperture = (unknown, lambda _: unknown) if clip.aperture is None else (clip.aperture, mouth_aperture)
    return clip_metrics(frames, clip.frames, pixel_mask(size), flow, truth, aperture, embed, embeddings)


def _write_samples(person: IdentityClips, generated: np.ndarray, folder: Path) -> list[str]:
    """The generated clip with its sound, the real one, the picture it was made from, and a contact sheet of real frames
    above generated ones. All show a person: only their owner reads them, from the first byte on."""
    from PIL import Image

    clip = person.measured[0]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replaced(folder / f"{person.key}.mp4") as partial:
        write_mp4(partial, generated, clip.audio, metadata=SYNTHETIC_TAG)
    with replaced(folder / f"{person.key}.real.mp4") as partial:
        write_mp4(partial, clip.frames, clip.audio)
    with replaced(folder / f"{person.key}.reference.png") as partial:
        Image.fromarray(person.reference).save(partial, "PNG")
    chosen = np.linspace(0, len(generated) - 1, 10).round().astype(int)
    with replaced(folder / f"{person.key}.png") as partial:
        contact_sheet([clip.frames[chosen], generated[chosen]], partial, ["real", "generated"])
    return [f"videos/{person.key}.mp4"]
