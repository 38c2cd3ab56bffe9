"""The `backbone` phase: codec, identity embedder and denoiser trained one after another by federated averaging."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel

from privfedtalk_flare.federation.averaging import AveragingError, check_weights, weighted_average
from privfedtalk_flare.flare import protocol as p
from privfedtalk_flare.flare.record import write_atomically
from privfedtalk_flare.settings import BackboneSettings

SIDECAR = "training.json"

Weights = dict[str, np.ndarray]


def train_backbone(settings: BackboneSettings, ask: Callable[[Mapping[str, np.ndarray], Mapping[str, Any], int],
                                                             list[FLModel]],
                   average_of: Callable[[list[FLModel]], tuple[Weights, float]],
                   say: Callable[[str], None]) -> tuple[dict[str, Weights], dict[str, list[float]]]:
    """Trains every component of `settings`, and returns its weights and its mean loss after each round.

    `ask(weights, meta, round)` broadcasts `<component>/<name>` -> array and returns the good replies: in the first
    round of a component the finished ones travel, afterwards only the one that trains. `average_of` makes one of them.
    """
    finished: dict[str, Weights] = {}
    losses: dict[str, list[float]] = {}
    for component in settings.components:
        rounds = getattr(settings, f"{component}_rounds")
        current: Weights | None = None
        losses[component] = []
        for number in range(1, rounds + 1):
            sent = finished if current is None else {component: current}
            flat = {f"{owner}/{name}": value for owner, tensors in sent.items() for name, value in tensors.items()}
            current, loss = average_of(ask(flat, {p.PHASE: component}, number))
            losses[component].append(loss)
            say(f"backbone: {component} round {number}/{rounds}  loss {loss:.5f}")
        if current is not None:
            finished[component] = current
    return finished, losses


def average_replies(replies: list[FLModel], min_sites: int,
                    refuse: Callable[[str, str], None]) -> tuple[Weights, float]:
    """The average of the replies' weights, and of their losses, by number of training clips.

    A reply that cannot be averaged is refused with its reason; AveragingError where fewer than `min_sites` remain.
    """
    weights: dict[str, Weights] = {}
    counts, losses = {}, {}
    for reply in replies:
        site = reply.meta["client_name"]
        try:
            like = next(iter(weights.values()), None)
            check_weights(reply.params, reply.meta.get(p.COUNT), like, site)
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
    weights: the command, the settings with their seed, the per-round losses, the hash of the job's files in `config`,
    and the same of the backbone it went on from.
    """
    from privfedtalk_flare.generator.pipeline import backbone_folder
    from privfedtalk_flare.training.backbone_site import save_backbone

    save_backbone(weights, folder, settings.start)
    digest = hashlib.sha256()
    for file in sorted(config.glob("*.json")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    sidecar = {"command": command, "config_sha256": digest.hexdigest(), "settings": asdict(settings),
               "losses": dict(losses)}
    if settings.start:
        before = backbone_folder(settings.start) / SIDECAR
        sidecar["start"] = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else settings.start
    write_atomically(folder / SIDECAR, json.dumps(sidecar, indent=2).encode())
