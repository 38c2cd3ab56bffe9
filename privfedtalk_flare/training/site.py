"""Everything one site does with its people, with no FLARE in it: adapter rounds, personalisation, validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from privfedtalk_flare.data.sound import SAMPLES_PER_FRAME
from privfedtalk_flare.evaluation.identity import IdentityEmbedder, embed, load_embedder
from privfedtalk_flare.federation.update import UpdateSpec
from privfedtalk_flare.generator.adapters import IdentityAdapter, SharedAdapter, save_shared
from privfedtalk_flare.generator.pipeline import TalkingHeadPipeline, load_pipeline
from privfedtalk_flare.plugins import load_function
from privfedtalk_flare.settings import (
    SCORED,
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    ReliabilitySettings,
    SettingsError,
    TrainingSettings,
)
from privfedtalk_flare.training.backbone_site import BackboneReply, BackboneSite
from privfedtalk_flare.training.cache import CachedClip, cache_clip
from privfedtalk_flare.training.corpus import IdentityClips, gather
from privfedtalk_flare.training.place import SitePlace
from privfedtalk_flare.training.trainer import train_denoiser
from privfedtalk_flare.training.validation import ADAPTERS, Validation, pixel_mask, validate_person

SCORED_FRAMES = 24
"""Frames of a held-out clip on which an identity's reliability is measured each round: just under a second."""

_FAULTS = (ArithmeticError, ValueError, LookupError)
"""What one person's data can make of a training or a score: it counts for this person alone, never for the site. (Out
of memory, a missing file or a setting is the site's, and raised.)"""


@dataclass(frozen=True)
class IdentityUpdate:
    """One identity's raw contribution. PRIVATE: it has no serialisation, and the privacy filter consumes it.

    `vector` (D,) float32, theta_i - theta, unclipped; `score` in [0, 1]; `count` training clips.
    """

    vector: np.ndarray
    score: float
    count: int


class SiteWork:
    """The work of one site. Whatever must outlive the process is in `place.state`."""

    def __init__(self, site: str, place: SitePlace, data: DataSettings, adapter: AdapterSettings,
                 training: TrainingSettings, personalize: TrainingSettings, reliability: ReliabilitySettings,
                 backbone: BackboneSettings, log: Callable[[str], None]) -> None:
        self.site, self.place, self.log = site, place, log
        self.data, self.adapter_settings, self.training = data, adapter, training
        self.personalize_settings, self.reliability, self.backbone = personalize, reliability, backbone

    @cached_property
    def generator(self) -> TalkingHeadPipeline:
        """The frozen backbone, on the site's first device."""
        return load_pipeline(self.adapter_settings.backbone).to(self.place.device)

    @cached_property
    def embedder(self) -> IdentityEmbedder:
        return load_embedder(self.adapter_settings.backbone).to(self.place.device)

    @cached_property
    def shared(self) -> SharedAdapter:
        settings = self.adapter_settings
        _ = self.generator.digest  # of the weights before LoRA wraps them
        return SharedAdapter(self.generator.denoiser, settings.rank, settings.scaling, settings.train)

    @cached_property
    def identity(self) -> IdentityAdapter:
        """One slot, loaded or reset for each person in turn."""
        return IdentityAdapter(self.shared, self.adapter_settings.identity_rank, self.data.seed, self.backbone_digest)

    @property
    def spec(self) -> UpdateSpec:
        return self.shared.spec

    @property
    def backbone_digest(self) -> str:
        return self.generator.digest

    @cached_property
    def people(self) -> list[IdentityClips]:
        return gather(self.data, self.place, self.size, self.log)

    @property
    def size(self) -> int:
        return int(self.generator.config.size)

    def prepare(self) -> int:
        """Finds or renders the clips, and returns m, the number of identities. Raises `NoClipsError`."""
        if self.data.held_out < 1:
            raise SettingsError("data.held_out 0 only trains a backbone: scores and metrics need a held-out clip")
        return len(self.people)

    def adapter_round(self, theta: np.ndarray, round: int) -> list[IdentityUpdate]:
        """Trains the shared adapter from theta (D,) for each identity on its own; m raw updates, in order of digest.

        Nothing passes between identities: each starts from theta with its own optimiser, batches and random state,
        which is what makes one identity's influence on the site's sum C / m. A person whose training fails counts as
        zeros with score 0.
        """
        # A theta that does not fit, or a signal or an embedder that is not there, is no person's fault.
        self.shared.load(theta)
        signal = load_function(self.reliability.signal, "reliability.signal")
        _ = self.embedder
        self.shared.activate()
        updates = []
        for place, person in enumerate(self.people, 1):
            try:
                updates.append(self._train_shared(theta, person, round, signal))
            except _FAULTS as error:
                self.log(f"round {round}: training person {person.key} failed and counts as zero: {error}")
                updates.append(IdentityUpdate(np.zeros(self.spec.size, np.float32), 0.0, len(person.train)))
            self.log(f"round {round}: person {place} of {len(self.people)} trained")
        return updates

    def _train_shared(self, theta: np.ndarray, person: IdentityClips, round: int,
                      signal: Callable[..., Any]) -> IdentityUpdate:
        self.shared.load(theta)
        rng = self._rng("adapter", person, round)
        train_denoiser(self.generator, self._cached(person), self.shared.parameters(), self.training, rng)
        vector = self.shared.read() - theta
        score = self._score(person, signal) if self.reliability.mode in SCORED else 0.0
        return IdentityUpdate(vector, score, len(person.train))

    def _score(self, person: IdentityClips, signal: Callable[..., Any]) -> float:
        """The reliability of the freshly trained adapter, on the start of a held-out clip, by the job's signal."""
        clip = person.held_out[0]
        frames = clip.frames[:SCORED_FRAMES]
        generated = self.generator(frames, person.train[0].frames[0], clip.audio[:len(frames) * SAMPLES_PER_FRAME])
        reference = embed(self.embedder, frames)
        return float(signal(generated=generated, real=frames, mask=pixel_mask(self.size),
                            embeddings=embed(self.embedder, generated), reference=reference,
                            alpha=self.reliability.alpha, tau=self.reliability.tau))

    def personalize(self, theta: np.ndarray) -> dict[str, float]:
        """Trains each identity's own adapter on top of theta, into `state`. Returns the mean final loss, or nothing
        where it would be one over fewer than `min_identities` people. A person whose training fails has no adapter.
        """
        self.shared.load(theta)
        self.identity.activate()
        losses = []
        for place, person in enumerate(self.people, 1):
            self.identity.reset()
            rng, path = self._rng("personalize", person, 0), self._adapter_path(person)
            try:
                losses.append(train_denoiser(self.generator, self._cached(person), self.identity.parameters(),
                                             self.personalize_settings, rng))
            except _FAULTS as error:
                self.log(f"personalize: training person {person.key} failed, who has no adapter now: {error}")
                if path.exists():
                    path.replace(path.with_suffix(".previous"))
                continue
            self.identity.save(path)
            self.log(f"personalize: person {place} of {len(self.people)} done")
        return {"loss": float(np.mean(losses))} if len(losses) >= self.place.min_identities else {}

    @property
    def adapters(self) -> list[str]:
        """Where the identity adapters lie, relative to the site's state: opaque names only, in their own order, since
        `people` has one that says something about who they are."""
        paths = [self._adapter_path(person) for person in self.people]
        return sorted(str(path.relative_to(self.place.state)) for path in paths if path.exists())

    def validate(self, theta: np.ndarray) -> Validation:
        """Measures every row on the held-out clips and renders sample videos into the job's run folder. Who has no
        adapter of their own is left out of `personalized`, whose measurement fails out of every row."""
        rows: dict[str, dict[str, list[float]]] = {}
        videos: list[str] = []
        self.identity.activate()
        embedder, zero = self.embedder, np.zeros_like(theta)
        for place, person in enumerate(self.people, 1):
            def generate(adapter: str, base: np.ndarray, reference: np.ndarray, audio: np.ndarray,
                         person: IdentityClips = person) -> np.ndarray:
                self.shared.load(zero if adapter == "backbone" else theta)
                self.identity.reset()
                if adapter == "personalized":
                    self.identity.load(self._adapter_path(person))
                return self.generator(base, reference, audio)

            self.shared.load(theta)
            adapters = ADAPTERS if self._has_adapter(person) else ADAPTERS[:-1]
            try:
                measured = validate_person(person, generate, lambda frames: embed(embedder, frames),
                                           self.place.output / "videos", self.size, adapters)
            except _FAULTS as error:
                self.log(f"validate: measuring person {person.key} failed, who is left out: {error}")
                continue
            for row, metrics in measured.rows.items():
                for name, value in metrics.items():
                    rows.setdefault(row, {}).setdefault(name, []).append(value)
            videos += measured.videos
            self.log(f"validate: person {place} of {len(self.people)} measured")
        return Validation(rows, sorted(videos))

    def _has_adapter(self, person: IdentityClips) -> bool:
        """Whether this person's adapter is there and fits; one of another backbone, shared adapter or rank, left by an
        earlier job, is none, and said so."""
        path = self._adapter_path(person)
        if not path.exists():
            return False
        try:
            self.identity.load(path)
        except ValueError as error:
            self.log(f"validate: person {person.key} has no adapter here: {error}")
            return False
        return True

    def save_shared_adapter(self, theta: np.ndarray, folder: Path, key: str = "") -> Path:
        """Writes the shared adapter, on the 2^-16 grid, as `adapter.safetensors` in `folder`; `key` as `save_shared`.
        """
        return save_shared(theta, self.spec, folder / "adapter.safetensors", self.backbone_digest, key)

    def backbone_round(self, phase: str, round: int, weights: dict[str, np.ndarray] | None) -> BackboneReply:
        """One round of a part of the backbone; see `training.backbone_site`."""
        return self._backbone_site.round(phase, round, weights or {})

    @cached_property
    def _backbone_site(self) -> BackboneSite:
        return BackboneSite(self.site, self.place, self.data, self.training, self.backbone, self.log)

    def _cached(self, person: IdentityClips) -> list[CachedClip]:
        folder, codec = self.place.state / "cache", self.generator.codec
        return [cache_clip(clip, codec, self.backbone_digest, folder) for clip in person.train]

    def _adapter_path(self, person: IdentityClips) -> Path:
        return self.place.state / "identities" / person.key / "adapter.safetensors"

    def _rng(self, what: str, person: IdentityClips, round: int) -> np.random.Generator:
        """Random batches of one identity in one round; the privacy noise is not drawn from here."""
        digest = hashlib.sha256(f"{self.data.seed} {self.site} {person.digest} {what} {round}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))
