"""The settings of a job: frozen dataclasses, parsed from the component arguments of a `config_fed_*.json`.

Every field carries its help text in its metadata; `parse` refuses unknown keys and values and names the choices.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T")


class SettingsError(ValueError):
    """A setting that cannot be used. The message names the value, the field and the choices."""


def setting(default: Any, help: str, *, choices: tuple[str, ...] = (), low: float | None = None,
            high: float | None = None) -> Any:
    """A dataclass field with its help text and its bounds (both ends allowed)."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class DataSettings:
    """Which clips a site trains on, and how they are split."""

    source: str = setting("site", "where clips come from: the site's own corpus, or people rendered for a trial",
                          choices=("site", "synthetic"))
    clip_source: str = setting("study_clips.find_clips", "dotted path of the function that lists a site's clips")
    held_out: int = setting(1, "clips of each identity that are never trained on: the first is scored, the others are "
                               "measured, a single one is both; 0 only trains", low=0)
    people: int = setting(2, "synthetic only: identities rendered at each site", low=1)
    clips: int = setting(5, "synthetic only: clips of each identity, held-out ones included", low=1)
    seconds: float = setting(3.0, "synthetic only: length of a clip", low=1.0, high=60.0)
    seed: int = setting(2026, "synthetic only: which people are rendered", low=0)
    accent: float = setting(0.0, "synthetic only: how differently these people's lips shape the same sounds", low=0.0,
                            high=1.0)


@dataclass(frozen=True)
class AdapterSettings:
    """The shared adapter and the identity adapters."""

    backbone: str = setting("assets", "the backbone: 'assets' (shipped), a folder, or a hub id")
    rank: int = setting(8, "rank of the shared adapter", low=1, high=256)
    scaling: float = setting(1.0, "what the product BA is multiplied by", low=1e-6)
    train: str = setting("b", "which factors are trained: B alone (A frozen and common), or both",
                         choices=("b", "both"))
    identity_rank: int = setting(8, "rank of the adapter that each identity keeps to itself", low=1, high=256)


@dataclass(frozen=True)
class TrainingSettings:
    """One identity's local training in one round (and, under `personalize`, of its own adapter)."""

    steps: int = setting(20, "optimiser steps", low=1)
    batch: int = setting(4, "windows a step", low=1)
    learning_rate: float = setting(4e-3, "AdamW's peak learning rate", low=0.0)
    tdc: float = setting(3.0, "weight of Temporal-Denoising Consistency", low=0.0)
    proximal: float = setting(0.0, "mu of FedProx: weight of |theta_i - theta|^2 / 2", low=0.0)
    mask_weight: float = setting(3.0, "weight of the masked region in the denoising loss", low=0.0)
    audio_dropout: float = setting(0.1, "share of windows trained without audio", low=0.0, high=1.0)


PERSONALIZE = TrainingSettings(steps=60, learning_rate=1e-3, tdc=10.0)
"""How an identity adapter is trained where nothing else is said. Its TDC takes a quarter of the flicker for about .2 dB
of PSNR (study ablation)."""

MODES = ("metadata", "counts", "sealed", "uniform")
"""How sites are weighed: by public score and clip count; by public clip count alone (FedAvg); each person's update by
score and count at the site, before the noise; not at all."""
CLAIMS = ("metadata", "counts")
"""The modes whose weights the server makes of what sites say."""
SCORED = ("metadata", "sealed")
"""The modes that need a score of each person."""


@dataclass(frozen=True)
class ReliabilitySettings:
    """How sites are weighed (Identity-Stable Federated Aggregation)."""

    mode: str = setting("metadata", "what the weights are made of, and who makes them", choices=MODES)
    release: str = setting("coarse", "metadata only: rounded to 1/16, or with accounted noise",
                           choices=("coarse", "noised"))
    gamma: float = setting(1.0, "metadata and sealed: how strongly the score weighs", low=0.0, high=10.0)
    alpha: float = setting(0.5, "share of identity consistency in the score", low=0.0, high=1.0)
    tau: float = setting(4.0, "flicker, in grey levels of 0..255, at which stability falls to 1/e", low=1e-3)
    lip_sync: float = setting(0.0, "share of lip-sync consistency in the score, which finds sound that does not belong "
                                   "to its frames; costs one more generated window a person and round", low=0.0,
                              high=1.0)
    max_clips: int = setting(64, "n_max: most training clips that count, of a site (sealed: of a person)", low=1)
    max_share: float = setting(2.0, "largest weight of a site, in multiples of 1/K; no cap at K <= 2", low=1.0)
    signal: str = setting("study_reliability.score", "dotted path of the function that scores an identity")


@dataclass(frozen=True)
class PrivacySettings:
    """Client-level differential privacy on adapter updates; the unit is one identity."""

    mechanism: str = setting("gaussian", "what protects an identity's update", choices=("gaussian", "off"))
    noise: str = setting("local", "who adds the noise: each site all of it, or each a share that is enough together",
                         choices=("local", "distributed"))
    honest_sites: int = setting(2, "distributed only: h, sites beside the observer that are trusted to add their "
                                   "share, sigma / sqrt(h), to each sum", low=2)
    people: int | None = setting(None, "distributed only: M, by which every site divides; its people at most", low=1)
    noise_multiplier: float = setting(1.0, "sigma: noise in units of the clip norm", low=1e-3)
    clip_norm: float = setting(0.004, "C: largest L2 norm of an identity's update", low=1e-9)
    score_noise_multiplier: float = setting(1.0, "sigma_s, with release 'noised'", low=1e-3)
    sampling: float = setting(1.0, "q: probability with which a person counts in a round; below 1 the site draws them "
                                   "anew each round, in secret, and trains everybody all the same", low=1e-4, high=1.0)
    clip_quantile: float | None = setting(None, "adaptive clipping: the share of updates that C shall not shorten; "
                                                "null: C stays as it is", low=0.05, high=0.95)
    clip_step: float = setting(0.2, "adaptive clipping: log of the most that C moves in a round", low=0.01, high=1.0)
    clip_range: float = setting(10.0, "adaptive clipping: C stays within clip_norm divided and multiplied by this",
                                low=1.0, high=1000.0)
    clip_bit_noise_multiplier: float = setting(10.0, "adaptive clipping: sigma_b, noise of a person's bit", low=1e-3)
    delta: float = setting(1e-5, "the delta at which epsilon is stated", low=1e-12, high=0.5)
    epsilon_max: float | None = setting(None, "the largest epsilon to which this job may bring an identity, with what "
                                              "its site has spent before; a site's own holds as well", low=0.0)

    @property
    def own_noise_multiplier(self) -> float:
        """What one site adds, in units of C/m: sigma, or a share of it."""
        return self.noise_multiplier / (math.sqrt(self.honest_sites) if self.shares_noise else 1.0)

    @property
    def shares_noise(self) -> bool:
        """Whether a site's upload holds a share of the noise only."""
        return self.mechanism == "gaussian" and self.noise == "distributed"

    @property
    def clip_bounds(self) -> tuple[float, float]:
        """The smallest and the largest C of any round."""
        spread = self.clip_range if self.clip_quantile is not None else 1.0
        return self.clip_norm / spread, self.clip_norm * spread

    @property
    def reach(self) -> float:
        """C / q: how far one identity can move m times its site's update, and what sigma multiplies, at the largest C.
        """
        return self.clip_bounds[1] / self.sampling


@dataclass(frozen=True)
class EncryptionSettings:
    """CKKS parameters; read only where no provisioned context exists (simulation)."""

    scheme: str = setting("ckks", "how updates travel", choices=("ckks", "off"))
    ring: int = setting(4096, "polynomial modulus degree")
    primes: tuple[int, ...] = setting((38, 32, 38), "bits of the coefficient primes")
    scale_bits: int = setting(32, "log2 of the scale", low=10, high=60)


PHASES = ("backbone", "adapter", "personalize", "validate")
"""In their order: each phase works on what those before it left."""
COMPONENTS = ("codec", "identity", "denoiser")
"""The backbone's parts in order: the denoiser works on the codec's latents."""


@dataclass(frozen=True)
class BackboneSettings:
    """The `backbone` phase: which parts are trained from nothing, and for how long."""

    components: tuple[str, ...] = setting(COMPONENTS, "parts, in order", choices=COMPONENTS)
    start: str = setting("", "a backbone to go on from ('assets' or a folder); empty: every part from nothing")
    seed: int = setting(0, "the common start of all sites, where `start` is empty", low=0)
    codec_rounds: int = setting(6, "rounds of the codec", low=1)
    codec_steps: int = setting(280, "steps of a site in a round of the codec", low=1)
    codec_batch: int = setting(48, "crops a step", low=1)
    identity_rounds: int = setting(3, "rounds of the identity embedder", low=1)
    identity_steps: int = setting(50, "steps of a site in a round of the identity embedder", low=1)
    identity_batch: int = setting(48, "people a step", low=2)
    denoiser_rounds: int = setting(24, "rounds of denoiser, aligner and audio encoder", low=1)
    denoiser_steps: int = setting(100, "steps of a site in a round of the denoiser", low=1)
    learning_rate: float = setting(1.2e-3, "the denoiser's peak learning rate", low=0.0)


@dataclass(frozen=True)
class RoundSettings:
    """The controller's rounds and phases."""

    phases: tuple[str, ...] = setting(("adapter", "personalize", "validate"), "phases, in order",
                                      choices=PHASES)
    rounds: int = setting(3, "rounds of the shared adapter", low=1)
    eta: float = setting(1.0, "the server's step", low=1e-6)
    min_sites: int = setting(2, "replies without which a round does not count", low=1)
    timeout: float = setting(3600.0, "seconds the server waits for a task", low=1.0)
    resume: str = setting("", "id of an earlier job, whose shared adapter this server still has and this job goes on "
                              "from; empty: the job that this one was cloned from, if it is a clone")


def parse(cls: type[T], values: Mapping[str, Any] | T | None, where: str) -> T:
    """Builds the frozen dataclass `cls` from `values`; `where` names the place in error messages.

    Raises `SettingsError` on an unknown key, a value of the wrong type, out of its bounds or not among its choices.
    """
    if isinstance(values, cls):
        return values
    if values is not None and not isinstance(values, Mapping):
        raise SettingsError(f"{where}: expected a mapping of settings, got {values!r}")
    known = {f.name: f for f in fields(cls)}
    for key in values or {}:
        if key not in known:
            raise SettingsError(f"{where}: unknown setting {key!r}; the choices are {', '.join(known)}")
    hints = typing.get_type_hints(cls)
    parsed = {}
    for name, field in known.items():
        if values is not None and name in values:
            parsed[name] = _checked(values[name], hints[name], field.metadata, f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise SettingsError(f"{where}: setting {name!r} is missing ({field.metadata.get('help', '')})")
    return cls(**parsed)


def _checked(value: Any, hint: Any, metadata: Mapping[str, Any], where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
        origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SettingsError(f"{where}: expected a list, got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_checked(v, item, metadata, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        quote = " (YAML takes off, on, no and yes for one unless they are quoted)" if isinstance(value, bool) else ""
        raise SettingsError(f"{where}: expected {hint.__name__}, got {value!r}{quote}")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{where}: must be finite, got {value!r}")
    choices, low, high = (metadata.get(k) for k in ("choices", "low", "high"))
    if choices and value not in choices:
        raise SettingsError(f"{where}: got {value!r}; the choices are {', '.join(choices)}")
    if low is not None and value < low:
        raise SettingsError(f"{where}: must be at least {low}, got {value!r}")
    if high is not None and value > high:
        raise SettingsError(f"{where}: must be at most {high}, got {value!r}")
    return value
