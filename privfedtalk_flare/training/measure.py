"""Measures a backbone on rendered people that it has not seen: the numbers in the sidecar of the shipped one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from privfedtalk_flare.data.clips import Clip, find_clips, load_clip
from privfedtalk_flare.data.synthetic import Person, write_corpus
from privfedtalk_flare.evaluation.aperture import mouth_aperture
from privfedtalk_flare.evaluation.identity import embed, load_embedder
from privfedtalk_flare.evaluation.metrics import clip_metrics, psnr_mask, sync
from privfedtalk_flare.evaluation.temporal import optical_flow
from privfedtalk_flare.generator.codec import decode, encode, to_frames, to_tensor
from privfedtalk_flare.generator.pipeline import ASSETS, load_pipeline
from privfedtalk_flare.training.validation import pixel_mask

SEED = 4040
"""People of the measurement: neither the backbone's (seed 1) nor the demo's (2026)."""


def measure_backbone(folder: str, people: int = 8, **sampling: float) -> dict[str, float]:
    """Means over `people` people, two clips each: the first gives the reference, the second is generated, with
    the pipeline's own `sampling` (steps, guidance) or another.

    Returns the metrics of `evaluation.metrics`; `codec_psnr_mask` in dB (decoded against real); how well the mouth
    follows another person's speech when driven by it (`swapped_follows`) and its own, unheard (`swapped_original`),
    with how alike the two truths are anyway (`swapped_chance`); of the embedder `verification_auc` (same person in
    another clip against other people) and `different_cosine`.
    """
    pipeline, embedder = load_pipeline(folder), load_embedder(folder)
    mask = pixel_mask(int(pipeline.config.size))
    rows: list[dict[str, float]] = []
    with TemporaryDirectory() as corpus:
        write_corpus(Path(corpus), [Person.draw(SEED, i) for i in range(people)], clips=2, seconds=3.0)
        clips = [load_clip(file) for file in find_clips(Path(corpus))]
    targets = clips[1::2]
    for known, target in zip(clips[::2], targets, strict=True):
        other = _least_alike(target, targets)
        generated = pipeline(target.frames, known.frames[0], target.audio, **sampling)
        row = clip_metrics(generated, target.frames, mask, optical_flow(target.frames), target.aperture, mouth_aperture,
                           lambda frames: embed(embedder, frames), embed(embedder, target.frames))
        decoded = to_frames(decode(pipeline.codec, encode(pipeline.codec, to_tensor(target.frames[::5]))))
        swapped = mouth_aperture(pipeline(target.frames, known.frames[0], other.audio, **sampling))
        rows.append(row | {"codec_psnr_mask": psnr_mask(decoded, target.frames[::5], mask),
                           "swapped_follows": sync(swapped, other.aperture),
                           "swapped_original": sync(swapped, target.aperture),
                           "swapped_chance": sync(other.aperture, target.aperture)})
    means = {name: round(float(np.nanmean([row[name] for row in rows])), 4) for name in rows[0]}
    return means | verification([embed(embedder, c.frames[::10]) for c in clips])


def _least_alike(target: Clip, clips: list[Clip]) -> Clip:
    """The clip whose mouth moves least like the target's: two people who pause at the same time look like a leak."""
    return min((clip for clip in clips if clip is not target),
               key=lambda clip: abs(sync(clip.aperture, target.aperture)))


def verification(embeddings: list[np.ndarray]) -> dict[str, float]:
    """Of embeddings (F, E), two clips a person in turn: the AUC of telling people apart, and the mean cosine between
    different people. Pairs are always across clips."""
    first, second = np.stack(embeddings[::2]), np.stack(embeddings[1::2])
    cosines = np.einsum("ifd,jgd->ijfg", first, second)
    own = np.eye(len(first), dtype=bool)
    same, other = cosines[own].ravel(), np.sort(cosines[~own].ravel())
    auc = float(np.searchsorted(other, same).mean() / len(other))
    return {"verification_auc": round(auc, 4), "different_cosine": round(float(other.mean()), 4)}


def import_backbone(run: Path, to: Path | None, people: int) -> tuple[Path, dict[str, float]]:
    """Measures the backbone that lies in a run's folder, writes the numbers into its sidecar and copies it to `to`.

    `to` defaults to the package's assets, where `backbone: assets` finds it. Raises FileNotFoundError where the run
    holds none, ValueError where it holds several.
    """
    found = sorted(run.rglob("backbone/model_index.json"))
    if not found:
        raise FileNotFoundError(f"{run}: no trained backbone in it (backbone/model_index.json); run jobs/backbone")
    if len(found) > 1:
        raise ValueError(f"{run}: {len(found)} backbones in it; name the folder of one, such as "
                         f"{found[-1].parent.parent}")
    source, target = found[0].parent, to or ASSETS / "backbone"
    numbers = measure_backbone(str(source), people)
    sidecar = json.loads((source / "training.json").read_text(encoding="utf-8"))
    sidecar["measured"] = {"people": people, "seed": SEED, **numbers}
    fresh = target.with_name(target.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh)
    (fresh / "training.json").write_text(json.dumps(sidecar, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    return fresh.rename(target), numbers
