"""One device of a site: the backbone on it, the adapters on the backbone, and what is done there to one person."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from privfedtalk_flare.data.sound import SAMPLES_PER_FRAME
from privfedtalk_flare.evaluation.identity import IdentityEmbedder, embed, load_embedder
from privfedtalk_flare.generator.adapters import IdentityAdapter, SharedAdapter
from privfedtalk_flare.generator.memory import shrink
from privfedtalk_flare.generator.pipeline import Scene, TalkingHeadPipeline, load_pipeline
from privfedtalk_flare.settings import SCORED, AdapterSettings, ReliabilitySettings, TrainingSettings
from privfedtalk_flare.training.cache import CachedClip, cache_clip
from privfedtalk_flare.training.corpus import IdentityClips
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.trainer import train_denoiser
from privfedtalk_flare.training.validation import ADAPTERS, PersonValidation, pixel_mask, validate_person

SCORED_FRAMES = 24
"""Frames of a held-out clip on which an identity's reliability is measured each round: just under a second."""


@dataclass(frozen=True)
class IdentityUpdate:
    """One identity's raw contribution. PRIVATE: it has no serialisation, and the privacy filter consumes it.

    `vector` (D,) float32, theta_i - theta, unclipped; `score` in [0, 1]; `count` training clips; `loss` of the last
    steps, for the site's own eyes, nan where training failed.
    """

    vector: np.ndarray
    score: float
    count: int
    loss: float = math.nan


class Lane:
    """A device with its own copy of everything that is trained or measured; nothing passes from person to person."""

    def __init__(self, device: str, place: SitePlace, adapter: AdapterSettings, reliability: ReliabilitySettings,
                 seed: int) -> None:
        """`seed`: of the identity adapters' start."""
        self.device, self.place, self.adapter, self.reliability, self.seed = device, place, adapter, reliability, seed

    @cached_property
    def generator(self) -> TalkingHeadPipeline:
        """The frozen backbone."""
        pipeline = load_pipeline(self.adapter.backbone).to(self.device)
        if self.place.low_memory:
            shrink(pipeline)
        return pipeline

    @cached_property
    def embedder(self) -> IdentityEmbedder:
        return load_embedder(self.adapter.backbone).to(self.device)

    @cached_property
    def shared(self) -> SharedAdapter:
        _ = self.generator.digest  # of the weights before LoRA wraps them
        return SharedAdapter(self.generator.denoiser, self.adapter.rank, self.adapter.scaling, self.adapter.train)

    @cached_property
    def identity(self) -> IdentityAdapter:
        """One slot, loaded or reset for each person in turn."""
        return IdentityAdapter(self.shared, self.adapter.identity_rank, self.seed, self.generator.digest)

    def train_shared(self, theta: np.ndarray, person: IdentityClips, training: TrainingSettings,
                     rng: np.random.Generator, signal: Callable[..., Any]) -> IdentityUpdate:
        """One person's update of the shared adapter from theta (D,), with its reliability by `signal`."""
        self.shared.load(theta)
        loss = self._train(self.shared, person, training, rng)
        vector = self.shared.read() - theta
        score = self._score(person, signal) if self.reliability.mode in SCORED else 0.0
        return IdentityUpdate(vector, score, len(person.train), loss)

    def _score(self, person: IdentityClips, signal: Callable[..., Any]) -> float:
        """The reliability of the freshly trained adapter, on the start of a held-out clip. Who is in it must be who is
        in every training clip: a folder that holds somebody else's clips as well is not consistent."""
        clip = person.scored
        frames = clip.frames[:SCORED_FRAMES]
        said = self.reliability
        scene = self.generator.prepare(frames, person.reference,
                                       clip.audio[:len(frames) * SAMPLES_PER_FRAME])
        generated = self.generator.render(scene)
        unheard = self.generator.render(scene, guidance=0.0) if said.lip_sync else None
        reference = embed(self.embedder, np.stack([other.frames[0] for other in person.train]))
        return float(signal(generated=generated, unheard=unheard, real=frames,
                            mask=pixel_mask(int(self.generator.config.size)),
                            embeddings=embed(self.embedder, generated), reference=reference,
                            alpha=said.alpha, tau=said.tau, lip_sync=said.lip_sync))

    def personalize(self, person: IdentityClips, training: TrainingSettings, rng: np.random.Generator,
                    path: Path) -> float:
        """Trains a person's own adapter on top of the shared one that is loaded, into `path`; returns the final loss.
        """
        self.identity.reset()
        loss = self._train(self.identity, person, training, rng)
        self.identity.save(path)
        return loss

    def adapter_fault(self, path: Path) -> str:
        """Why the person whose adapter lies at `path` has none that fits what is loaded here, "" where it fits."""
        if not path.exists():
            return "there is none"
        try:
            self.identity.load(path)
        except ValueError as error:
            return str(error)
        return ""

    def validate(self, theta: np.ndarray, person: IdentityClips, path: Path | None, folder: Path) -> PersonValidation:
        """Measures a person with the backbone, with the shared adapter theta (D,) and, where `path` names one, with
        their own on top; sample videos go into `folder`."""
        zero = np.zeros_like(theta)

        def generate(adapter: str, scene: Scene) -> np.ndarray:
            self.shared.load(zero if adapter == "backbone" else theta)
            self.identity.reset()
            if adapter == "personalized":
                self.identity.load(path)
            return self.generator.render(scene)

        return validate_person(person, self.generator.prepare, generate, lambda frames: embed(self.embedder, frames),
                               folder, int(self.generator.config.size),
                               ADAPTERS if path is not None else ADAPTERS[:-1])

    def _train(self, adapter: SharedAdapter | IdentityAdapter, person: IdentityClips, training: TrainingSettings,
               rng: np.random.Generator) -> float:
        return train_denoiser(self.generator, self.cached(person), adapter.parameters(), training, rng,
                              at_once=1 if self.place.low_memory else None)

    def cached(self, person: IdentityClips) -> list[CachedClip]:
        """A person's training clips, through the codec once."""
        folder = self.place.state / "cache"
        return [cache_clip(clip, self.generator.codec, self.generator.digest, folder) for clip in person.train]
