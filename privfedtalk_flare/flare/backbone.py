"""The `backbone` phase: codec, identity embedder and denoiser trained one after another by federated averaging."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from safetensors.numpy import save_file

from privfedtalk_flare.federation.averaging import AveragingError, check_weights, most_common, weighted_average
from privfedtalk_flare.files import READABLE, replaced, write_whole
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.settings import BackboneSettings

SIDECAR = "training.json"
PARTS = "backbone_parts"
"""Folder in the run folder with each component's latest average, `<component>.safetensors`, losses in the metadata."""

Weights = dict[str, np.ndarray]


def train_backbone(settings: BackboneSettings, ask: Callable[[Mapping[str, np.ndarray], Mapping[str, Any], int],
                                                             list[FLModel]],
                   average_of: Callable[[list[FLModel]], tuple[Weights, float]],
                   say: Callable[[str], None],
                   run: Path) -> tuple[dict[str, Weights], dict[str, list[float]]]:
    """Trains every component of `settings`, and returns its weights and its mean loss after each round.

    `ask(weights, meta, round)` broadcasts `<component>/<name>` -> array and returns the good replies; `average_of`
    makes one of them. All that is trained so far travels every round, so a late or restarted site needs nothing else.
    It is kept in the run folder `run` as well: hours of training outlive a round with too few replies, whose
    AveragingError says what is there.
    """
    weights: dict[str, Weights] = {}
    losses: dict[str, list[float]] = {}
    for component in settings.components:
        rounds = getattr(settings, f"{component}_rounds")
        losses[component] = []
        for number in range(1, rounds + 1):
            flat = {f"{owner}/{name}": value for owner, tensors in weights.items() for name, value in tensors.items()}
            try:
                weights[component], loss = average_of(ask(flat, {p.PHASE: component}, number))
            except AveragingError as reason:
                raise AveragingError(f"{component} round {number}/{rounds}: {reason}; "
                                     f"{_kept(settings, losses)}") from reason
            losses[component].append(loss)
            with replaced(run / PARTS / f"{component}.safetensors", READABLE) as partial:
                save_file(weights[component], partial, metadata={"losses": json.dumps(losses[component])})
            say(f"backbone: {component} round {number}/{rounds}  loss {loss:.5f}")
    return weights, losses


def _kept(settings: BackboneSettings, losses: Mapping[str, list[float]]) -> str:
    done = [f"{part} ({len(told)} of {getattr(settings, f'{part}_rounds')} rounds)"
            for part, told in losses.items() if told]
    return f"{PARTS}/ in the run folder keeps {', '.join(done)}" if done else "nothing is kept"


def average_replies(replies: list[FLModel], min_sites: int,
                    refuse: Callable[[str, str], None]) -> tuple[Weights, float]:
    """The average of the replies' weights, and of their losses, by number of training clips.

    A reply that cannot be averaged is refused with its reason: names and shapes are those that most sites sent.
    AveragingError where fewer than `min_sites` remain.
    """
    weights: dict[str, Weights] = {}
    counts, losses = {}, {}
    like = most_common([reply.params or {} for reply in replies])
    for reply in replies:
        site = reply.meta["client_name"]
        try:
            check_weights(reply.params or {}, reply.meta.get(p.COUNT), like, site)
            losses[site] = float(reply.meta[p.LOSS])
            if not math.isfinite(losses[site]):
                raise AveragingError(f"{site}: its loss {losses[site]} is not finite")
        except (AveragingError, KeyError, TypeError, ValueError) as error:
            refuse(site, str(error))
            continue
        weights[site], counts[site] = reply.params, reply.meta[p.COUNT]
    if len(weights) < min_sites:
        raise AveragingError(f"{len(weights)} good replies, min_sites is {min_sites}")
    total = sum(counts.values())
    return weighted_average(weights, counts), sum(losses[s] * counts[s] for s in counts) / total


def save(weights: Mapping[str, Weights], losses: Mapping[str, list[float]], settings: BackboneSettings,
         folder: Path, config: Path) -> None:
    """Writes the backbone as a folder that `TalkingHeadPipeline.from_pretrained` loads, and `training.json` beside its
    weights: the command, the job's sections in `config` that shape a backbone, with their seeds and a hash, the
    per-round losses, and the same of the backbone it went on from.
    """
    from privfedtalk_flare.generator.pipeline import backbone_folder
    from privfedtalk_flare.training.backbone_site import save_backbone

    save_backbone(weights, folder, settings.start)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    sidecar = {"command": command, **job_of(config), "losses": dict(losses)}
    if settings.start:
        before = backbone_folder(settings.start) / SIDECAR
        sidecar["start"] = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else settings.start
    write_whole(folder / SIDECAR, json.dumps(sidecar, indent=2).encode(), READABLE)


def job_of(config: Path) -> dict[str, Any]:
    """What of a job's `config` folder shapes a backbone: its sections `data` and `backbone`, and their SHA-256."""
    client = json.loads((config / "config_fed_client.json").read_text(encoding="utf-8"))
    job = {name: client[name] for name in ("data", "backbone")}
    return {"job": job, "config_sha256": hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()}
