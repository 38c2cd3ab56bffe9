"""One site's rounds of the `backbone` phase, and the backbone's weights as they travel and as they are saved.

The backbone has three parts, trained one after another: `codec`, `identity` (the embedder), `denoiser` (with the
aligner and the audio encoder). Weights travel as numpy arrays named `<module>.<parameter>`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from privfedtalk_flare.evaluation.identity import IdentityEmbedder, build_embedder, load_embedder
from privfedtalk_flare.generator.codec import encode, set_latent_scale, to_tensor
from privfedtalk_flare.generator.pipeline import TalkingHeadPipeline, load_pipeline, save_pipeline
from privfedtalk_flare.settings import COMPONENTS, BackboneSettings, DataSettings, TrainingSettings
from privfedtalk_flare.training.backbone import train_codec, train_identity, train_talking
from privfedtalk_flare.training.cache import CachedClip, cache_clip
from privfedtalk_flare.training.corpus import IdentityClips, gather
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.trainer import Schedule

MOMENTS = "latent_moments"
"""(2,) mean and standard deviation of the codec's raw latents; travels with the codec and is averaged with it."""


@dataclass(frozen=True)
class BackboneReply:
    """What a site answers in the backbone phase: plain weights of one part, its training clips, its final loss."""

    weights: dict[str, np.ndarray]
    count: int
    loss: float


class Backbone:
    """The parts under training, with their weights by name."""

    def __init__(self, seed: int, start: str = "", device: str = "cpu") -> None:
        self.generator = (load_pipeline(start) if start else TalkingHeadPipeline.build(seed)).to(device)
        self.embedder: IdentityEmbedder = (load_embedder(start) if start else build_embedder(seed)).to(device)
        for part in COMPONENTS:
            for module in self.modules(part).values():
                module.requires_grad_(True)

    def modules(self, part: str) -> dict[str, nn.Module]:
        """The modules of a part, by the name that prefixes their weights."""
        if part == "denoiser":
            return self.generator.talking
        return {part: self.embedder if part == "identity" else self.generator.codec}

    def read(self, part: str) -> dict[str, np.ndarray]:
        return {f"{owner}.{name}": tensor.detach().cpu().numpy().copy()
                for owner, module in self.modules(part).items() for name, tensor in module.state_dict().items()}

    def load(self, part: str, weights: Mapping[str, np.ndarray]) -> None:
        """Raises RuntimeError (torch's own, naming the tensors) where names or shapes differ."""
        weights = dict(weights)
        moments = weights.pop(MOMENTS, None)
        for owner, module in self.modules(part).items():
            own = {n.removeprefix(f"{owner}."): torch.from_numpy(np.array(t)) for n, t in weights.items()
                   if n.startswith(f"{owner}.")}
            module.load_state_dict(own)
        if moments is not None:
            set_latent_scale(self.generator.codec, *moments)


def save_backbone(weights: Mapping[str, Mapping[str, np.ndarray]], folder: Path, start: str = "") -> None:
    """Writes the parts as a folder that `load_pipeline` and `load_embedder` read, in fp16 safetensors.

    Parts that were not trained come from backbone `start`; without one ValueError names them: a generator is whole or
    it is not saved.
    """
    missing = [part for part in COMPONENTS if part not in weights]
    if missing and not start:
        raise ValueError(f"backbone: no weights of {', '.join(missing)}; train every part, or name a `start`")
    backbone = Backbone(seed=0, start=start)
    for part, tensors in weights.items():
        backbone.load(part, tensors)
    save_pipeline(backbone.generator, folder)
    backbone.embedder.half().save_pretrained(folder / "identity", safe_serialization=True)


class BackboneSite:
    """A site's part in the backbone phase. Nothing is kept between rounds: each task carries all trained so far."""

    def __init__(self, site: str, place: SitePlace, data: DataSettings, training: TrainingSettings,
                 settings: BackboneSettings, log: Callable[[str], None]) -> None:
        self.site, self.place, self.data, self.training, self.settings = site, place, data, training, settings
        self.log = log
        self.backbone = Backbone(settings.seed, settings.start, place.device)

    @cached_property
    def people(self) -> list[IdentityClips]:
        return gather(self.data, self.place, int(self.backbone.generator.config.size), self.log)

    def round(self, phase: str, round: int, weights: Mapping[str, np.ndarray]) -> BackboneReply:
        """Trains `phase` for one round from `weights`, `<part>/<name>` -> array, which hold every part trained so far.

        Raises ValueError where one is missing: what this site has of it would be of another run, or untrained.
        """
        parts: dict[str, dict[str, np.ndarray]] = {}
        for key, tensor in weights.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        before = self.settings.components[:self.settings.components.index(phase)]
        if missing := [part for part in (*before, *([phase] if round > 1 else [])) if part not in parts]:
            raise ValueError(f"backbone: the task of {phase} round {round} carries no weights of {', '.join(missing)}; "
                             "server and sites need the same version of the package and the same backbone.components")
        for part, tensors in parts.items():
            self.backbone.load(part, tensors)
        rounds = getattr(self.settings, f"{phase}_rounds")
        schedule = Schedule((round - 1) / rounds, round / rounds)
        loss = getattr(self, f"_train_{phase}")(self._rng(phase, round), schedule)
        self.log(f"backbone: {phase} round {round}/{rounds} loss {loss:.5f}")
        out = self.backbone.read(phase)
        if phase == "codec":
            latents = encode(self.backbone.generator.codec, to_tensor(self._pictures()[::40]), raw=True).cpu()
            out[MOMENTS] = np.array([latents.mean(), latents.std()], np.float32)
        return BackboneReply(out, sum(len(p.train) for p in self.people), loss)

    def _pictures(self) -> np.ndarray:
        return np.concatenate([clip.frames for person in self.people for clip in person.train])

    def _train_codec(self, rng: np.random.Generator, schedule: Schedule) -> float:
        return train_codec(self.backbone.generator, self._pictures(), self.settings.codec_steps,
                           self.settings.codec_batch, rng, schedule)

    def _train_identity(self, rng: np.random.Generator, schedule: Schedule) -> float:
        frames = [np.concatenate([c.frames for c in p.train]) for p in self.people]
        return train_identity(self.backbone.embedder, frames, self.settings.identity_steps,
                              self.settings.identity_batch, rng, schedule)

    def _train_denoiser(self, rng: np.random.Generator, schedule: Schedule) -> float:
        settings = replace(self.training, steps=self.settings.denoiser_steps,
                           learning_rate=self.settings.learning_rate)
        return train_talking(self.backbone.generator, self._cached, settings, rng, schedule)

    @cached_property
    def _cached(self) -> list[CachedClip]:
        codec = self.backbone.generator.codec
        digest = hashlib.sha256(b"".join(t.tobytes() for t in self.backbone.read("codec").values())).hexdigest()
        return [cache_clip(c, codec, digest, self.place.state / "cache") for p in self.people for c in p.train]

    def _rng(self, phase: str, round: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.settings.seed} {self.site} {phase} {round}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))
