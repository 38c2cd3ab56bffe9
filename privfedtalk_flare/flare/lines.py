"""The lines a run prints: one a round, in the field's words."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from privfedtalk_flare.evaluation.summary import Round
from privfedtalk_flare.privacy.accountant import PUBLIC_COUNTS, PUBLIC_METADATA, SECRET_SAMPLE, SHARED_NOISE
from privfedtalk_flare.privacy.words import handful_words
from privfedtalk_flare.settings import CLAIMS, SCORED, PrivacySettings, ReliabilitySettings, RoundSettings
from privfedtalk_flare.snr import known_snr, snr_bound

say = logging.getLogger("privfedtalk_flare.run").info
"""Prints one line of progress: a logger of its own, so that a console can show these and warnings alone."""

_VIEWS = {"receivers": "receivers", "server": "server", "server_and_site": "server with a site"}


def start_line(sites: list[str], rounds: RoundSettings, reliability: ReliabilitySettings,
               privacy: PrivacySettings) -> str:
    """What is about to run, with sigma, C, eta and delta."""
    text = f"{len(sites)} sites ({', '.join(sites)}): {', '.join(rounds.phases)}"
    if "adapter" not in rounds.phases:
        return text
    text += f"; {rounds.rounds} rounds, eta {rounds.eta:g}, weights {reliability.mode}"
    if reliability.mode in SCORED:
        text += f" (gamma {reliability.gamma:g})"
    if privacy.mechanism == "off":
        return f"{text}; no differential privacy"
    sampled = f", q {privacy.sampling:g}" if privacy.sampling < 1 else ""
    shared = f" together from {privacy.honest_sites} sites" if privacy.shares_noise else ""
    adaptive = "" if privacy.clip_quantile is None else f" at first, then quantile {privacy.clip_quantile:g}"
    return (f"{text}; differential privacy: sigma {privacy.noise_multiplier:g}{shared}, C {privacy.clip_norm:g}"
            f"{adaptive}{sampled}, delta {privacy.delta:g}")


def shown_settings(rounds: RoundSettings, reliability: ReliabilitySettings,
                   privacy: PrivacySettings) -> dict[str, Any]:
    """What the summary shows of an adapter phase's settings, under the paper's letters."""
    if "adapter" not in rounds.phases:
        return {}
    shown: dict[str, Any] = {"eta": rounds.eta, "mode": reliability.mode}
    if reliability.mode == "metadata":
        shown |= {"release": reliability.release, "gamma": reliability.gamma}
        shown |= {"sigma_s": privacy.score_noise_multiplier} if reliability.release == "noised" else {}
    if reliability.mode in CLAIMS:
        shown |= {"n_max": reliability.max_clips, "max_share": reliability.max_share}
    if privacy.mechanism != "off":
        shown |= {"sigma": privacy.noise_multiplier, "C": privacy.clip_norm}
        if privacy.shares_noise:
            shown |= {"h": privacy.honest_sites, "M": privacy.people}
        shown |= {"q": privacy.sampling} if privacy.sampling < 1 else {}
        if privacy.clip_quantile is not None:
            shown |= {"clip_quantile": privacy.clip_quantile, "sigma_b": privacy.clip_bit_noise_multiplier}
    return shown


def round_line(entry: Round, total: int, reliability: ReliabilitySettings, cap: float | None) -> str:
    """One finished round: `cap` is the largest weight a site could have had."""
    parts = [f"round {entry.round}/{total}"]
    for site, told in sorted(entry.sites.items()):
        known = [f"{key} {told[key]:.2f}" for key in ("weight", "score") if key in told]
        if cap is not None and told.get("weight", 0.0) >= cap * (1 - 1e-9):
            known.append("(share cap)")
        parts.append(" ".join([site, *known]) if known else f"{site} (sealed)")
    if cap is None and reliability.mode in CLAIMS:
        parts.append("no share cap")
    parts.append(epsilon_text(entry.epsilon, reliability))
    parts.append(f"{entry.seconds['wall']:.0f} s")
    return "  ".join(parts)


def epsilon_text(epsilon: Mapping[str, Any], reliability: ReliabilitySettings) -> str:
    """Epsilon by who is looking, equal ones together, with what it does not cover."""
    seen: dict[str, list[str]] = {}
    for view, name in _VIEWS.items():
        if (value := epsilon.get(view)) is not None:
            seen.setdefault(value if isinstance(value, str) else f"{value:.2f}", []).append(name)
    if not seen:
        return "epsilon not stated"
    stated = "epsilon " + ", ".join(f"{number} ({', '.join(names)})" for number, names in seen.items())
    return stated + (" given public metadata" if reliability.mode in CLAIMS else "")


def round_words(entry: Round, people: int, values: int, privacy: PrivacySettings, reliability: ReliabilitySettings,
                phases: Sequence[str]) -> str:
    """What a round's epsilon means for this many people and this length of an update, and what it does not cover."""
    epsilon = entry.epsilon.get("receivers")
    if epsilon is None:
        return ""
    if isinstance(epsilon, str):
        return handful_words(people, 0.0, math.inf)
    bound = snr_bound(privacy.sampling * people, privacy.own_noise_multiplier, max(1, len(entry.sites)), values)
    snr, most = known_snr(entry.snr, bound, values)
    texts = [handful_words(people, snr, epsilon, most=most)]
    if reliability.mode in CLAIMS:
        scored = reliability.mode == "metadata" and reliability.release == "coarse"
        texts.append(f"It holds {PUBLIC_METADATA if scored else PUBLIC_COUNTS}.")
    conditions = [SECRET_SAMPLE] * (privacy.sampling < 1) + [SHARED_NOISE] * privacy.shares_noise
    texts += [f"It holds {condition}." for condition in conditions]
    if "validate" in phases or "personalize" in phases:
        texts.append("Metrics leave a site as means over people, without noise, and lie outside it too.")
    return " ".join(texts)
