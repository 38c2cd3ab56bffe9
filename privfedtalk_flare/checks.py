"""Settings that are each in order but do not go together: refused before a job is built, both named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from privfedtalk_flare.encryption.keys import check_ckks
from privfedtalk_flare.settings import (
    CLAIMS,
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
              encryption: EncryptionSettings, rounds: RoundSettings, *,
              data: DataSettings | None = None, backbone: BackboneSettings | None = None) -> list[str]:
    """Raises `SettingsError` on a combination that would break a promise; returns warnings, each a sentence."""
    check_private(adapter, reliability, privacy)
    check_phases(rounds, backbone or BackboneSettings())
    if data is not None and not data.held_out and set(rounds.phases) != {"backbone"}:
        raise SettingsError(f"data.held_out 0 does not go with rounds.phases {list(rounds.phases)}: scores and metrics "
                            "need a held-out clip of each person; use 1 or more")
    if "adapter" in rounds.phases:
        check_shares(privacy, rounds)
    if privacy.shares_noise and encryption.scheme == "off":
        raise SettingsError("privacy.noise 'distributed' does not go with encryption.scheme 'off': the server would "
                            "see each upload with one site's share of the noise; use 'ckks', or noise 'local'")
    if encryption.scheme == "ckks":
        check_ckks(encryption)
        _check_range(privacy, encryption, rounds)
    return _warnings(reliability, privacy)


def check_private(adapter: AdapterSettings, reliability: ReliabilitySettings, privacy: PrivacySettings) -> None:
    """Raises `SettingsError` where noise would not carry its promise. Sites check this too, whoever built the job."""
    if privacy.mechanism != "gaussian":
        if reliability.mode == "metadata" and reliability.release == "noised":
            raise SettingsError("reliability.release 'noised' does not go with privacy.mechanism 'off', which accounts "
                                "for no noise; use reliability.release 'coarse', or privacy.mechanism 'gaussian'")
        if privacy.clip_quantile is not None:
            raise SettingsError(f"privacy.clip_quantile {privacy.clip_quantile:g} does not go with privacy.mechanism "
                                "'off', which clips nothing; use mechanism 'gaussian', or leave clip_quantile out")
        if privacy.sampling < 1:
            raise SettingsError(f"privacy.sampling {privacy.sampling:g} does not go with privacy.mechanism 'off': "
                                "without noise a sample hides nobody; use privacy.sampling 1, or mechanism 'gaussian'")
        return
    if privacy.sampling < 1 and reliability.mode in CLAIMS:
        raise SettingsError(f"privacy.sampling {privacy.sampling:g} does not go with reliability.mode "
                            f"{reliability.mode!r}: the public numbers of a sample tell who is in it, and sampling "
                            "protects only while nobody knows; use reliability.mode 'sealed' or 'uniform'")
    if privacy.clip_quantile is not None and reliability.mode == "sealed":
        raise SettingsError(f"privacy.clip_quantile {privacy.clip_quantile:g} does not go with reliability.mode "
                            "'sealed', in which no number about people travels; use another mode, or a fixed clip_norm")
    if adapter.train == "both":
        raise SettingsError("adapter.train 'both' does not go with privacy.mechanism 'gaussian': the product of two "
                            "noisy factors is no Gaussian release; use adapter.train 'b', or privacy.mechanism 'off'")
    if privacy.noise == "distributed":
        if reliability.mode in CLAIMS:
            raise SettingsError(f"privacy.noise 'distributed' does not go with reliability.mode {reliability.mode!r}: "
                                "unequal weights break the promise (claimed epsilon 5.0, true 11.3); use privacy.noise "
                                "'local'")
        if privacy.people is None:
            raise SettingsError("privacy.noise 'distributed' needs privacy.people: every site divides by one public "
                                "number, the most people that any of them has, so that all shares weigh the same")
        if privacy.clip_quantile is not None:
            raise SettingsError(f"privacy.noise 'distributed' does not go with privacy.clip_quantile "
                                f"{privacy.clip_quantile:g}: bits carry the noise of their site; use a fixed clip_norm")


def check_shares(privacy: PrivacySettings, rounds: RoundSettings) -> None:
    """Raises `SettingsError` where a sum could hold fewer shares of distributed noise than it promises: one of its
    replies may be the observer's own. Sites and server check this too, whoever built the job."""
    if privacy.shares_noise and rounds.min_sites < privacy.honest_sites + 1:
        raise SettingsError(f"rounds.min_sites {rounds.min_sites} does not go with privacy.honest_sites "
                            f"{privacy.honest_sites}: whoever looks at a sum knows the share of its own site, so it "
                            f"takes {privacy.honest_sites + 1} replies or more; raise min_sites, or lower honest_sites")


def check_phases(rounds: RoundSettings, backbone: BackboneSettings) -> None:
    """Raises `SettingsError` on phases or backbone components that would do nothing, or lose what they trained."""
    _check_order(rounds.phases, PHASES, "rounds.phases")
    if "personalize" in rounds.phases and "adapter" not in rounds.phases:
        raise SettingsError(f"rounds.phases {list(rounds.phases)}: 'personalize' does not go without 'adapter', whose "
                            "result it trains on top of: each site's adapters would be written anew on top of nothing; "
                            "name both")
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


def _check_range(privacy: PrivacySettings, encryption: EncryptionSettings, rounds: RoundSettings) -> None:
    """For the worst case, one site of one person with all the weight."""
    if privacy.mechanism == "off":
        return  # without a clip there is no bound; `packing` refuses each value and each sum out of range
    variance = (privacy.noise_multiplier * privacy.reach) ** 2
    reach = rounds.eta * (rounds.rounds * privacy.reach * math.sqrt(2 / encryption.ring)
                          + 6 * math.sqrt(rounds.rounds * variance / encryption.ring))
    limit = 2.0 ** (encryption.primes[0] - 2 - encryption.scale_bits)  # half of where a value wraps
    if reach > limit:
        raise SettingsError(
            f"privacy.clip_norm {privacy.clip_norm:g}{_widened(privacy)} and privacy.noise_multiplier "
            f"{privacy.noise_multiplier:g} over rounds.rounds {rounds.rounds} at rounds.eta {rounds.eta:g} can reach "
            f"{reach:.3g}, beyond half the range of encryption.primes {list(encryption.primes)} at scale_bits "
            f"{encryption.scale_bits} ({limit:.3g}): ciphertexts would wrap silently; lower the clip norm or the "
            "rounds, or widen the first prime")


def _widened(privacy: PrivacySettings) -> str:
    """What makes C larger than it is set."""
    times = f" times privacy.clip_range {privacy.clip_range:g}" if privacy.clip_quantile is not None else ""
    return times + (f" over privacy.sampling {privacy.sampling:g}" if privacy.sampling < 1 else "")


def _warnings(reliability: ReliabilitySettings, privacy: PrivacySettings) -> list[str]:
    warnings = []
    if reliability.mode == "metadata" and reliability.release == "noised" and privacy.mechanism == "gaussian":
        people = math.ceil(10 * privacy.score_noise_multiplier)
        warnings.append(f"reliability.release 'noised' drowns the score at sites with fewer than about {people} people "
                        "(10 sigma_s); reliability.mode 'sealed' costs no budget")
    if reliability.mode == "metadata" and reliability.gamma == 0:
        warnings.append("reliability.gamma 0 with reliability.mode 'metadata' publishes a score that weighs nothing; "
                        "reliability.mode 'counts' has the same weights and publishes none")
    if reliability.mode == "sealed" and reliability.gamma > MAX_SEALED_GAMMA:
        warnings.append(f"reliability.gamma {reliability.gamma:g} with reliability.mode 'sealed' shrinks the signal to "
                        f"almost nothing; keep it at or below {MAX_SEALED_GAMMA:g}")
    return warnings
