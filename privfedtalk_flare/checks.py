"""Settings that are each in order but do not go together: refused before a job is built, both named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from privfedtalk_flare.encryption.keys import check_ckks
from privfedtalk_flare.settings import (
    COMPONENTS,
    PHASES,
    AdapterSettings,
    BackboneSettings,
    DataSettings,
    EncryptionSettings,
    PrivacySettings,
    ReliabilitySettings,
    RoundSettings,
    SettingsError,
)

MAX_SEALED_GAMMA = 2.0


def check_job(adapter: AdapterSettings, reliability: ReliabilitySettings, privacy: PrivacySettings,
              encryption: EncryptionSettings, rounds: RoundSettings, sites: int | None = None, *,
              data: DataSettings | None = None, backbone: BackboneSettings | None = None) -> list[str]:
    """Raises `SettingsError` on a combination that would break a promise; returns warnings, each a sentence.

    `sites`: how many take part, where known; None is checked as the worst case, one site with all the weight.
    """
    check_private(adapter, reliability, privacy)
    check_phases(rounds, backbone or BackboneSettings())
    if data is not None and not data.held_out and set(rounds.phases) != {"backbone"}:
        raise SettingsError(f"data.held_out 0 does not go with rounds.phases {list(rounds.phases)}: scores and metrics "
                            "need a held-out clip of each person; use 1 or more")
    if encryption.scheme == "ckks":
        check_ckks(encryption)
        _check_range(privacy, encryption, rounds, reliability, sites)
    return _warnings(reliability, privacy, sites)


def check_private(adapter: AdapterSettings, reliability: ReliabilitySettings, privacy: PrivacySettings) -> None:
    """Raises `SettingsError` where noise would not carry its promise. Sites check this too, whoever built the job."""
    if privacy.mechanism != "gaussian":
        if reliability.mode == "metadata" and reliability.release == "noised":
            raise SettingsError("reliability.release 'noised' does not go with privacy.mechanism 'off', which accounts "
                                "for no noise; use reliability.release 'coarse', or privacy.mechanism 'gaussian'")
        return
    if adapter.train == "both":
        raise SettingsError("adapter.train 'both' does not go with privacy.mechanism 'gaussian': the product of two "
                            "noisy factors is no Gaussian release; use adapter.train 'b', or privacy.mechanism 'off'")
    if privacy.noise == "distributed":
        if reliability.mode == "metadata":
            raise SettingsError("privacy.noise 'distributed' does not go with reliability.mode 'metadata': unequal "
                                "weights break the promise (claimed epsilon 5.0, true 11.3); use privacy.noise 'local'")
        raise SettingsError(f"privacy.noise 'distributed' with reliability.mode {reliability.mode!r} needs a poll of "
                            "the honest sites before training, which this version does not hold; use 'local'")


def check_phases(rounds: RoundSettings, backbone: BackboneSettings) -> None:
    """Raises `SettingsError` on phases or backbone components that would do nothing, or lose what they trained."""
    _check_order(rounds.phases, PHASES, "rounds.phases")
    if "backbone" not in rounds.phases:
        return
    if len(rounds.phases) > 1:
        raise SettingsError(f"rounds.phases {list(rounds.phases)}: 'backbone' does not go with other phases, which "
                            "would run on adapter.backbone and not on the one just trained; run jobs/backbone first, "
                            "then `privfedtalk backbone import` on its run, then this job without 'backbone'")
    _check_order(backbone.components, COMPONENTS, "backbone.components")
    if not backbone.start and backbone.components != COMPONENTS:
        raise SettingsError(f"backbone.components {list(backbone.components)} does not go with an empty "
                            f"backbone.start: a backbone is saved whole; name {', '.join(COMPONENTS)}, or a "
                            "backbone.start that the other parts come from")
    if "codec" in backbone.components and "denoiser" not in backbone.components:
        raise SettingsError(f"backbone.components {list(backbone.components)}: 'codec' does not go without 'denoiser', "
                            "which works on the codec's latents; name both")


def _check_order(given: Sequence[str], order: Sequence[str], where: str) -> None:
    if not given:
        raise SettingsError(f"{where} is empty: nothing would run; name one or more of {', '.join(order)}")
    for before, after in pairwise(given):
        if order.index(before) >= order.index(after):
            raise SettingsError(f"{where} {list(given)}: {after!r} stands after {before!r}; name each at most once, "
                                f"in the order {', '.join(order)}")


def _check_range(privacy: PrivacySettings, encryption: EncryptionSettings, rounds: RoundSettings,
                 reliability: ReliabilitySettings, sites: int | None) -> None:
    if privacy.mechanism == "off":
        return  # without a clip there is no bound to check here; `packing.encrypt` refuses each value out of range
    share = 1.0  # sum_k w_k^2 <= max_k w_k, as the weights sum to 1
    if sites is not None and sites > 2:
        share = 1.0 / sites if reliability.mode != "metadata" else min(1.0, reliability.max_share / sites)
    variance = share * (privacy.noise_multiplier * privacy.clip_norm) ** 2  # m_k >= 1
    reach = rounds.eta * (rounds.rounds * privacy.clip_norm * math.sqrt(2 / encryption.ring)
                          + 6 * math.sqrt(rounds.rounds * variance / encryption.ring))
    limit = 2.0 ** (encryption.primes[0] - 2 - encryption.scale_bits)  # half of where a value wraps
    if reach > limit:
        raise SettingsError(
            f"privacy.clip_norm {privacy.clip_norm:g} and privacy.noise_multiplier {privacy.noise_multiplier:g} over "
            f"rounds.rounds {rounds.rounds} at rounds.eta {rounds.eta:g} can reach {reach:.3g}, beyond half the range "
            f"of encryption.primes {list(encryption.primes)} at scale_bits {encryption.scale_bits} ({limit:.3g}): "
            "ciphertexts would wrap silently; lower the clip norm or the rounds, or widen the first prime")


def _warnings(reliability: ReliabilitySettings, privacy: PrivacySettings, sites: int | None) -> list[str]:
    warnings = []
    if reliability.mode == "metadata" and reliability.release == "noised" and privacy.mechanism == "gaussian":
        people = math.ceil(10 * privacy.score_noise_multiplier)
        warnings.append(f"reliability.release 'noised' drowns the score at sites with fewer than about {people} people "
                        "(10 sigma_s); reliability.mode 'sealed' costs no budget")
    if reliability.mode == "sealed" and reliability.gamma > MAX_SEALED_GAMMA:
        warnings.append(f"reliability.gamma {reliability.gamma:g} with reliability.mode 'sealed' shrinks the signal to "
                        f"almost nothing; keep it at or below {MAX_SEALED_GAMMA:g}")
    if reliability.mode == "metadata" and (sites is None or sites <= 2):
        warnings.append("at two sites or fewer no share cap applies: each holds the weight that its score and "
                        "count claim")
    return warnings
