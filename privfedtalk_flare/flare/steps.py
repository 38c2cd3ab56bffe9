"""The steps of the shared adapter: what the server says about them, and what a site checks before it follows one.

A receiver refuses a step that is longer than clipped and noised updates can make it: a site
that sent more than it may, or a sum that went wrong. As a server could learn about the adapter from which sums are
refused, a site that refused one takes part in nothing until its operator has looked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from privfedtalk_flare.files import replaced
from privfedtalk_flare.flare.failures import HeaderError
from privfedtalk_flare.flare.protocol import (
    AFTER,
    AGREED,
    CLIP_BIT,
    CLIP_NORM,
    IDENTITIES,
    JOB,
    MOVED,
    NONCE,
    ROUND,
    STEP_NOISE,
)
from privfedtalk_flare.flare.scalars import number
from privfedtalk_flare.flare.sections import plain
from privfedtalk_flare.privacy import adaptive
from privfedtalk_flare.privacy.step import StepRefused, check_step
from privfedtalk_flare.settings import PrivacySettings, RoundSettings
from privfedtalk_flare.snr import snr_of_step
from privfedtalk_flare.training.place import SitePlace

FILE_NAME = "theta.safetensors"
STOPPED = "stopped.txt"
CHECKED = "privfedtalk_checked"
"""In the FLContext of a task (FLARE makes one for each): whether `check_header` and `check` have let it pass."""


class Stopped(RuntimeError):  # noqa: N818  (a state, not a fault)
    """This site refused a step of the shared adapter and waits for its operator."""


@dataclass
class StepLog:
    """The server's side: which broadcasts carried which theta, and how far it has moved since theta = 0."""

    after: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    noise: float = 0.0
    reach: float = 0.0
    variance: float = 0.0

    def took(self, eta: float, noise: float) -> None:
        """Books a step of size `eta`, at the largest C, where the weighted sum of updates would carry noise of this
        standard deviation, sqrt(V). With adaptive clipping a round's C, and with it both, is smaller: pass eta C_t / C.
        """
        self.after, self.carried = self.carried, []
        self.noise = eta * noise
        self.reach, self.variance = self.reach + eta, self.variance + self.noise ** 2

    def told(self) -> dict[str, Any]:
        """What a task that carries theta says about it."""
        return {AFTER: list(self.after), STEP_NOISE: self.noise, MOVED: [self.reach, self.variance]}


def noise_of_sum(stats: Mapping[str, Mapping[str, Any]], privacy: PrivacySettings) -> float:
    """sqrt(V): the standard deviation, on a coordinate, of the noise in a round's weighted sum, at the largest C.

    `stats`: the aggregator's, site -> weight and number of people, by which its noise is divided.
    """
    if privacy.mechanism == "off":
        return 0.0
    shares = (told["weight"] / (privacy.people if privacy.shares_noise else told[IDENTITIES])
              for told in stats.values())
    return privacy.own_noise_multiplier * privacy.reach * math.sqrt(sum(share ** 2 for share in shares))


def next_clip_norm(clip_norm: float, stats: Mapping[str, Mapping[str, Any]], privacy: PrivacySettings) -> float:
    """C of the next round: the same, or, with adaptive clipping, where the bits of those who sent one move it."""
    bits = [told[CLIP_BIT] for told in stats.values() if told[CLIP_BIT] is not None]
    if privacy.clip_quantile is None or not bits:
        return clip_norm
    return adaptive.next_clip_norm(clip_norm, bits, quantile=privacy.clip_quantile, step=privacy.clip_step,
                                   bounds=privacy.clip_bounds)


@dataclass(frozen=True)
class _Seen:
    """The theta that this site saw last, with the nonce and the round of its broadcast, and MOVED."""

    theta: np.ndarray
    nonce: str
    round: int
    moved: tuple[float, float]


def check_header(meta: Mapping[str, Any], job: str, **settings: Any) -> None:
    """Raises `HeaderError` where a task with this `meta` is not of `job`, or was made with other `settings`.

    `settings`: the site's own, section by section; AGREED in `meta` is the server's copy of some of them. FLARE's own
    FedAvg says neither.
    """
    if meta.get(JOB) not in ("", None, job):
        raise HeaderError(f"header {JOB}: the server says {meta[JOB]!r}, this site runs {job!r} and takes tasks of "
                          "that job only")
    for name, theirs in (meta.get(AGREED) or {}).items():
        if name not in settings:
            raise HeaderError(f"header {AGREED}: {name!r} cannot be compared; the choices are {', '.join(settings)}")
        mine = plain(settings[name])
        if differing := sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)):
            raise HeaderError(f"{name}: the server's settings differ from this site's in {', '.join(differing)}; "
                              "config_fed_server.json and config_fed_client.json must agree")


def clip_norm_of(meta: Mapping[str, Any], privacy: PrivacySettings) -> float:
    """C of the round that the task with this `meta` begins. Raises `HeaderError` where the job has it otherwise."""
    low, high = privacy.clip_bounds
    told = meta.get(CLIP_NORM)
    if privacy.clip_quantile is None:
        if told is not None:
            raise HeaderError(f"header {CLIP_NORM}: {str(told)[:80]!r}, but this site's C is fixed at {high:g}")
        return high
    if not number(told, low * (1 - 1e-9), high * (1 + 1e-9)):
        raise HeaderError(f"header {CLIP_NORM}: {str(told)[:80]!r} does not lie in [{low:g}, {high:g}], where this "
                          "site's settings let C move")
    return float(told)


def check(theta: np.ndarray | None, meta: Mapping[str, Any], place: SitePlace, privacy: PrivacySettings,
          rounds: RoundSettings) -> None:
    """Raises `StepRefused`, and stops the site, where `theta` (D,), None for 0, lies too far from the one seen last.

    `meta` is the task's, `privacy` and `rounds` the site's own settings: what the server says of the step may narrow
    the bound and never widen it. It holds from theta = 0 on, so rounds that this site missed only widen it; without
    noise there is none.
    """
    if privacy.mechanism != "gaussian":
        return
    try:
        _check(theta, _recalled(place.output / FILE_NAME), meta, privacy, rounds)
    except StepRefused as reason:
        _stop(place.state, reason)
        raise


def follow(theta: np.ndarray, meta: Mapping[str, Any], place: SitePlace, privacy: PrivacySettings) -> float | None:
    """Remembers `theta`, which `check` let pass, in the run folder, and returns the signal-to-noise ratio of its step.

    The ratio is None where no noise was added, where this site took no part in the broadcast before the step, or where
    it has seen this theta already. What is remembered is a file, as FLARE may restart the process between tasks.
    """
    path = place.output / FILE_NAME
    seen = _recalled(path)
    _remember(path, theta, meta)
    noise = float(meta.get(STEP_NOISE) or 0.0)
    if seen is None or seen.nonce not in (meta.get(AFTER) or ()) or seen.theta.shape != theta.shape or noise <= 0.0:
        return None
    step = float(np.linalg.norm(theta.astype(np.float64) - seen.theta))
    eta = abs(_moved(meta)[0] - seen.moved[0])
    return snr_of_step(step, noise, theta.size, eta * privacy.reach)


def refuse_if_stopped(state: Path) -> None:
    """Raises `Stopped` where this site refused a step earlier and nobody has looked yet."""
    if (state / STOPPED).exists():
        raise Stopped(f"this site refused a step of the shared adapter; read {state / STOPPED}, which says why, and "
                      "remove it to take part again")


def _check(theta: np.ndarray | None, seen: _Seen | None, meta: Mapping[str, Any], privacy: PrivacySettings,
           rounds: RoundSettings) -> None:
    moved = meta.get(MOVED)
    if not (isinstance(moved, (list, tuple)) and len(moved) == 2 and all(number(value, 0) for value in moved)):
        raise HeaderError(f"header {MOVED}: {str(moved)[:80]!r} does not say how far theta has moved")
    current = int(meta.get(ROUND) or 1)
    if not 1 <= current <= rounds.rounds + 1:  # the phases after the last round bear one number more
        raise HeaderError(f"header {ROUND}: {current}, but this site's rounds.rounds is {rounds.rounds}")
    if seen is None:
        seen = _Seen(np.zeros(1 if theta is None else theta.shape, np.float32), "", 1, (0.0, 0.0))
    if theta is None:
        theta = np.zeros_like(seen.theta)
    if seen.theta.shape != theta.shape:
        raise HeaderError(f"the shared adapter has shape {theta.shape}, the one before it {seen.theta.shape}")
    eta, variance = (abs(now - was) for now, was in zip(moved, seen.moved, strict=True))  # a step taken back counts too
    steps = max(1, current - seen.round)
    if eta > rounds.eta * steps * (1 + 1e-9):
        raise StepRefused(f"the server says that theta moved by {eta:g} of eta since round {seen.round}; {steps} "
                          f"rounds at this site's rounds.eta {rounds.eta:g} make {rounds.eta * steps:g} at most")
    most = privacy.noise_multiplier * privacy.reach * eta  # V <= (sigma C / q)^2, whatever the server says
    error = 5e-5 * float(np.abs(theta).max()) + 1e-5 * math.sqrt(current)
    check_step(theta.astype(np.float64) - seen.theta, reach=eta * privacy.reach,
               noise_std=min(math.sqrt(variance), most), error=2 * error)


def _moved(meta: Mapping[str, Any]) -> list[float]:
    return meta.get(MOVED) or [0.0, 0.0]


def _recalled(path: Path) -> _Seen | None:
    if not path.is_file():
        return None
    with safe_open(str(path), framework="numpy") as file:
        told = file.metadata() or {}
        return _Seen(file.get_tensor("theta"), told.get(NONCE, ""), int(told.get(ROUND, 1)),
                     tuple(json.loads(told.get(MOVED, "[0, 0]"))))


def _remember(path: Path, theta: np.ndarray, meta: Mapping[str, Any]) -> None:
    with replaced(path) as partial:
        save_file({"theta": np.ascontiguousarray(theta, dtype=np.float32)}, partial,
                  metadata={NONCE: str(meta.get(NONCE, "")), ROUND: str(meta.get(ROUND) or 1),
                            MOVED: json.dumps(_moved(meta))})


def _stop(state: Path, reason: StepRefused) -> None:
    state.mkdir(parents=True, exist_ok=True)
    (state / STOPPED).write_text(f"{reason}\nRemove this file to take part again.\n", encoding="utf-8")
