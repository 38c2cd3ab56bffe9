"""Planning a study before anyone trains: the noise it needs, what the adapter can learn under it, what would help.

Signal to noise of one round's step, at best. K sites hold N people in all, m = N/K each; an update has D values.
- Signal: every v_i delta_i is at most C/m long, so the sites' mean is at most C long, reached if all people pull one
  way. Under Poisson sampling v_i = 1/(q m), and the q N people expected in a round make C again, in expectation.
- Noise: a site adds sigma C/(q m) to every coordinate; averaging K sites divides it by sqrt(K), and D coordinates make
  it sqrt(D) times as long: sigma C sqrt(K D) / (q N).
- So SNR <= q N / (sigma sqrt(K D)); q = 1 is full participation. Unequal sites do no better under weights by people or
  1/K. In `sealed` mode v_i is smaller by (n_i/n_max) exp(gamma (s_i - 1)), the noise is not: SNR shrinks by its mean.
- T rounds that all pull one way add up to T signals against sqrt(T) noises: sqrt(T) times the SNR of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from privfedtalk_flare.federation.isfa import sealed_weights
from privfedtalk_flare.privacy.accountant import PUBLIC_COUNTS, PUBLIC_METADATA
from privfedtalk_flare.privacy.gaussian import AccountError, noise_multiplier_for
from privfedtalk_flare.privacy.sampled import ACCOUNTANTS, accountant_words, sampled_epsilon
from privfedtalk_flare.privacy.words import below_noise
from privfedtalk_flare.settings import CLAIMS, MODES, SettingsError, setting
from privfedtalk_flare.snr import snr_bound

TYPICAL_SCORES = (0.5, 0.8)
"""Scores for which `sealed` plans are shown: an unsure site's and a good one's."""
MOST_ROUNDS = 1_000_000
LEAST_NOISE = 1e-3
"""`PrivacySettings.noise_multiplier` accepts no less."""

_PRECISION = 1.002  # two noise multipliers closer than this are one


@dataclass(frozen=True)
class Study:
    """What is planned: who takes part, for how long, and the promise they are given."""

    identities: int = setting(1, "N: people at all sites together", low=1, high=10 ** 10)
    rounds: int = setting(1, "T: rounds of the shared adapter", low=1, high=MOST_ROUNDS)
    epsilon: float = setting(8.0, "the promise over all rounds, for the receivers", low=1e-3, high=1e3)
    delta: float = setting(1e-5, "the delta at which epsilon is stated", low=1e-12, high=0.5)
    sampling: float = setting(1.0, "q: probability with which a person takes part in a round", low=1e-6, high=1.0)
    mode: str = setting("metadata", "what the weights are made of", choices=MODES)
    gamma: float = setting(1.0, "sealed only: how strongly the score weighs", low=0.0, high=10.0)
    values: int = setting(90_112, "D: values of an update (default: the shipped backbone at rank 8)", low=1,
                          high=10 ** 12)
    sites: int = setting(4, "K: sites that take part", low=1, high=10 ** 6)
    accountant: str = setting("prv", "with sampling: who accounts", choices=ACCOUNTANTS)


@dataclass(frozen=True)
class Outlook:
    """What the adapter can learn, at best, at one score (None: the score does not matter).

    `shrinkage` is what is left of step and signal; `snr` a round's, `snr_of_all` that of all rounds together. `people`,
    `values`, `rounds`: each alone makes a round's SNR 1, the rest as planned: at least so many people; at most so many
    values (0: not even one); at most so many rounds (0: not even one; `MOST_ROUNDS`: that many or more).
    """

    score: float | None
    shrinkage: float
    snr: float
    snr_of_all: float
    people: int
    values: int
    rounds: int


@dataclass(frozen=True)
class Plan:
    """The answer: sigma (rounded up to four digits, to be copied into a job), the epsilon it then costs, the expected
    number of people in a round, an outlook for each score that matters, and `words` to be read beside the numbers."""

    study: Study
    noise_multiplier: float
    epsilon: float
    people_a_round: float
    outlooks: tuple[Outlook, ...]
    words: tuple[str, ...]


def make_plan(study: Study) -> Plan:
    """Plans `study`. Raises `SettingsError` on settings that do not go together, `AccountError` where no account can be
    made. With sampling and `prv` this takes some seconds: about twenty accounts."""
    _check(study)
    sigma = needed_noise(study)
    outlooks = tuple(_outlook(study, sigma, score) for score in _scores(study))
    epsilon = _epsilon(study, sigma, study.rounds)
    return Plan(study, sigma, epsilon, study.sampling * study.identities, outlooks,
                _words(study, max(outlooks, key=lambda outlook: outlook.snr)))


def needed_noise(study: Study) -> float:
    """The smallest sigma that keeps `study.rounds` rounds within (epsilon, delta), rounded up to four digits.

    With sampling: bisection over the accountant, to .2 %, from above; a sigma whose epsilon cannot be computed counts
    as too little noise. At least `LEAST_NOISE`.
    """
    enough = _rounded_up(max(noise_multiplier_for(study.epsilon, study.delta, study.rounds), LEAST_NOISE))
    if study.sampling == 1:
        return enough
    _epsilon(study, enough, study.rounds)  # enough for everyone is enough for a sample: raises if nothing can be shown
    too_little = enough
    while too_little == enough and enough > LEAST_NOISE:
        too_little = max(enough / 2, LEAST_NOISE)
        if _within(study, too_little, study.rounds):
            enough = too_little
    while enough / too_little > _PRECISION:
        middle = math.sqrt(enough * too_little)
        if _within(study, middle, study.rounds):
            enough = middle
        else:
            too_little = middle
    return _rounded_up(enough)


def snr_of_round(study: Study, sigma: float, shrinkage: float = 1.0) -> float:
    """The most that one round's |signal| / |noise| can be expected to reach (this file's docstring)."""
    return shrinkage * snr_bound(study.sampling * study.identities, sigma, study.sites, study.values)


def shrinkage(score: float, gamma: float, share_of_clips: float = 1.0) -> float:
    """v_i m in `sealed` mode: (n_i / n_max) exp(gamma (s_i - 1)), what it leaves of a person's step and signal."""
    return share_of_clips * float(sealed_weights([score], [1], gamma=gamma, max_clips=1)[0])


def _check(study: Study) -> None:
    if study.identities < study.sites:
        raise SettingsError(f"plan.identities {study.identities} does not go with plan.sites {study.sites}: a site "
                            "holds at least one person, and one person is at one site only")
    if study.sampling < 1 and study.mode in CLAIMS:
        raise SettingsError(f"plan.sampling {study.sampling:g} does not go with plan.mode {study.mode!r}: the public "
                            "numbers of a sample tell who is in it, and sampling protects only while nobody knows; "
                            "use plan.mode 'sealed' or 'uniform', or plan.sampling 1")


def _scores(study: Study) -> tuple[float | None, ...]:
    return TYPICAL_SCORES if study.mode == "sealed" else (None,)


def _outlook(study: Study, sigma: float, score: float | None) -> Outlook:
    left = 1.0 if score is None else shrinkage(score, study.gamma)
    snr = snr_of_round(study, sigma, left)
    return Outlook(score=score, shrinkage=left, snr=snr, snr_of_all=math.sqrt(study.rounds) * snr,
                   people=max(math.ceil(study.identities / snr), study.sites),
                   values=math.floor(study.values * snr * snr), rounds=_most_rounds(study, sigma * snr))


def _most_rounds(study: Study, sigma: float) -> int:
    """How many rounds at `sigma` the promise pays for, `MOST_ROUNDS` at most; with sampling to 1 %, and as far as the
    accountant can show."""
    if study.sampling == 1:
        one = noise_multiplier_for(study.epsilon, study.delta, 1)  # T rounds need sqrt(T) times as much
        return min(math.floor((sigma / one) ** 2), MOST_ROUNDS)
    return _largest(lambda rounds: _within(study, sigma, rounds), study.rounds)


def _largest(fits: Callable[[int], bool], start: int) -> int:
    """The largest number in [0, MOST_ROUNDS] that fits, to 1 %; what is smaller than one that fits, fits too."""
    low, high = 0, start
    while fits(high):
        if high == MOST_ROUNDS:
            return high
        low, high = high, min(2 * high, MOST_ROUNDS)
    while high - low > max(1, low // 100):
        middle = (low + high) // 2 if low else max(1, math.isqrt(high))  # from zero, by orders of magnitude
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _epsilon(study: Study, sigma: float, rounds: int) -> float:
    return sampled_epsilon(sigma, study.sampling, rounds, study.delta, study.accountant)


def _within(study: Study, sigma: float, rounds: int) -> bool:
    try:
        return _epsilon(study, sigma, rounds) <= study.epsilon
    except AccountError:  # no epsilon can be shown, so none is promised
        return False


def _rounded_up(value: float) -> float:
    """Four significant digits, never less than `value`: what is copied from the table into a job still suffices."""
    near = float(f"{value:.4g}")
    return near if near >= value else float(f"{near + 10.0 ** (math.floor(math.log10(near)) - 3):.4g}")


def _words(study: Study, outlook: Outlook) -> tuple[str, ...]:
    words = [f"Epsilon is {accountant_words(study.sampling, study.accountant)}.", _verdict(outlook),
             "SNR is a bound: it takes every update to be as long as the clip allows and to point the same way."]
    if study.mode in CLAIMS:
        words.append(f"Epsilon holds {PUBLIC_METADATA if study.mode == 'metadata' else PUBLIC_COUNTS}.")
    if study.mode == "sealed":
        words.append("What is left of step and signal is for people with n_max clips; fewer shrink it in proportion.")
    if study.sampling < 1:
        words.append("Sampling protects as long as nobody learns who was sampled; sites train everybody all the same, "
                     "as the time of a round would tell.")
    if study.delta * study.identities > 1:
        words.append(f"delta {study.delta:g} is more than one in {study.identities:,} people: the promise may fail for "
                     "one of them. Use a smaller one.")
    return tuple(words)


def _verdict(best: Outlook) -> str:
    if best.snr >= 1:
        return f"The signal reaches {best.snr:.3g} times the noise in every round: the shared adapter can learn."
    if best.snr_of_all >= 1:
        return (f"In a round the noise is at least {1 / best.snr:.3g} times the signal; only rounds that all pull the "
                "same way bring the signal above it. The shared adapter may learn a little.")
    return (f"The noise is at least {1 / best.snr:.3g} times the signal in a round, and above it over all rounds: the "
            f"shared adapter {below_noise(best.snr, most=True).rstrip(',')}.")
