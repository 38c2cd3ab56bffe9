"""What Poisson-subsampled rounds cost: Opacus' PRV and RDP accountants, kept on the safe side.

Update, score and clip bit of a round share one secret sample, so they are *one* subsampled Gaussian step with sigma_eff
(`effective_noise_multiplier`). Charged apart, as if each had a sample of its own, they would seem to cost too little:
.91 where 2.29 is true (q .01, sigma = sigma_s = 1, 100 rounds, delta 1e-5). At q = 1 there is no sample to hide in and
the composition is exact: `gaussian.epsilon_of`, never PRV, which fails there.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np

from privfedtalk_flare.privacy.gaussian import AccountError, composed_mu, epsilon_of

ACCOUNTANTS = ("prv", "rdp")
EPSILON_ERROR = 0.01
"""PRV's error in epsilon: its upper bound, which is what counts here, lies about twice this above the truth at most."""
RENYI_ORDERS = [1 + x / 10 for x in range(1, 100)] + [*range(11, 64), 128, 256, 512, 1024]
"""dp-accounting's orders: Opacus' own end at 63, which overstates small epsilons twelvefold."""

_History = tuple[tuple[float, float, int], ...]  # (sigma_eff, q, how many times), as Opacus has it
_DELTA_SHARE = 1e-3  # Opacus' delta_error / delta
_MAX_POINTS = 1 << 23  # of PRV's grid: about 1 GB and some seconds
_ROUNDING = 10 * float(np.finfo(np.float64).eps)  # what a round adds to the error of a tail mass taken from an FFT


def effective_noise_multiplier(sigma: float, score_noise: float | None = None, bit_noise: float | None = None) -> float:
    """sigma_eff of one round: 1/sigma_eff^2 = 1/sigma^2 + 1/sigma_s^2 + 1/(2 sigma_b)^2, None where nothing travels.

    `sigma`: the update's noise in units of C/m; `score_noise` = sigma_s, in units of the score's 1/m; `bit_noise` =
    sigma_b, in units of 1/m on the mean of clip bits of +-1/2, whose sensitivity is half of that. Raises
    `AccountError` on a noise that is not a finite number above 0.
    """
    for name, value in (("sigma", sigma), ("score_noise", score_noise), ("bit_noise", bit_noise)):
        if value is not None or name == "sigma":
            _positive(name, value)
    parts = (sigma, score_noise, None if bit_noise is None else 2 * bit_noise)
    return 1 / composed_mu(part for part in parts if part is not None)


def sampled_epsilon(noise_multiplier: float, sampling_rate: float, rounds: int, delta: float,
                    accountant: str = "prv") -> float:
    """An upper bound on epsilon at `delta` of `rounds` steps with sigma_eff `noise_multiplier`, each on a fresh Poisson
    sample in which an identity lies with probability q = `sampling_rate` in (0, 1]; at q = 1 it is exact.

    `prv` is tight to about .02, `rdp` looser and never in want of memory or precision. Neither exceeds the exact
    epsilon of full participation: by convexity, hiding in a sample costs nothing. Opacus' PRV looks at an identity's
    removal; that its addition costs no more is not proved for compositions, and checked against dp-accounting, which
    takes both. Raises `AccountError` on a value out of range or a result that is not finite.
    """
    _check_step(noise_multiplier, sampling_rate)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise AccountError(f"rounds must be an integer of at least 1, got {rounds!r}")
    if accountant not in ACCOUNTANTS:
        raise AccountError(f"accountant {accountant!r} is unknown; the choices are {', '.join(ACCOUNTANTS)}")
    everyone = epsilon_of(math.sqrt(rounds) / noise_multiplier, delta)  # refuses a delta out of range
    if sampling_rate == 1:
        return everyone
    bound = {"prv": _prv, "rdp": _rdp}[accountant](((noise_multiplier, sampling_rate, rounds),), delta)
    return min(everyone, max(0.0, bound))


def composed_epsilon(steps: Iterable[tuple[float, float]], delta: float, *, tight: bool = True) -> float:
    """The same for a series of steps (sigma_eff, q) that may differ; exact where q is 1 in all of them.

    The smaller of two upper bounds: Renyi orders, and, if it shall be `tight`, PRV, which takes a second, where it can
    be computed and no step takes everyone.
    """
    counted = Counter(steps)
    for step in counted:
        _check_step(*step)
    everyone = epsilon_of(composed_mu(sigma for (sigma, _), times in counted.items() for _ in range(times)), delta)
    if all(rate == 1 for _, rate in counted):
        return everyone
    history = tuple(sorted((*step, times) for step, times in counted.items()))
    return min(everyone, max(0.0, _bound(history, delta, tight)))


@lru_cache(maxsize=256)
def _bound(history: _History, delta: float, tight: bool) -> float:
    """Remembered: one release asks for the same account more than once."""
    bounds = [math.inf]
    for account in (_rdp, _prv) if tight and all(rate < 1 for _, rate, _ in history) else (_rdp,):
        with contextlib.suppress(AccountError):  # full participation, which is always known, bounds it too
            bounds.append(account(history, delta))
    return min(bounds)


def accountant_words(sampling_rate: float, accountant: str = "prv") -> str:
    """Which account `sampled_epsilon` makes, for people."""
    if sampling_rate == 1:
        return "exact: everyone takes part in every round, a plain composition of Gaussians"
    if accountant == "prv":
        who = f"about {2 * EPSILON_ERROR:g} above the truth at most: Opacus' PRV accountant"
    else:
        who = "by Renyi orders, rather loose: Opacus' RDP accountant"
    return f"an upper bound, {who} for Poisson-sampled rounds at rate {sampling_rate:g}"


def _prv(history: _History, delta: float) -> float:
    from opacus.accountants import PRVAccountant

    rounds = sum(times for *_, times in history)
    if rounds * _ROUNDING > delta * _DELTA_SHARE:
        raise AccountError(f"delta {delta:g} over {rounds} rounds is too small for accountant 'prv', whose rounding "
                           f"reaches it; use delta {rounds * _ROUNDING / _DELTA_SHARE:.1g} or more, or 'rdp'")
    # Opacus lays its grid from -reach to reach; this is how it takes both (its `compute_safe_domain_size`).
    reach = 3 + max([_rdp(history, delta * _DELTA_SHARE / 4),
                     *(_rdp(((sigma, rate, 1),), delta * _DELTA_SHARE / (8 * rounds)) for sigma, rate, _ in history)])
    points = 2 * reach / EPSILON_ERROR * math.sqrt(rounds * math.log(12 / (delta * _DELTA_SHARE)) / 2)
    if points > _MAX_POINTS:
        raise AccountError(f"{_words(history)} needs a grid of {points:.2g} points, more than the {_MAX_POINTS:.2g} "
                           "that accountant 'prv' may take; use more noise, fewer rounds, or accountant 'rdp'")
    accountant = PRVAccountant()
    accountant.history = [tuple(step) for step in history]
    return _finite("prv", history, lambda: accountant.get_epsilon(
        delta, eps_error=EPSILON_ERROR, delta_error=delta * _DELTA_SHARE))  # Opacus returns its upper bound


def _rdp(history: _History, delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [tuple(step) for step in history]
    return _finite("rdp", history, lambda: accountant.get_epsilon(delta, alphas=RENYI_ORDERS))


def _finite(accountant: str, history: _History, account: Callable[[], float]) -> float:
    """What `account` returns, or `AccountError` where it fails, overflows or is not a number."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # "optimal order is the largest": a looser bound, still a bound
            epsilon = float(account())
    except (ValueError, RuntimeError, ArithmeticError) as error:
        epsilon, why = math.nan, f" ({error or type(error).__name__})"
    else:
        why = ""
    if not math.isfinite(epsilon):
        raise AccountError(f"accountant {accountant!r} finds no finite epsilon for {_words(history)}{why}; use more "
                           "noise or fewer rounds")
    return epsilon


def _words(history: _History) -> str:
    return " and ".join(f"noise_multiplier {sigma:g} at sampling_rate {rate:g} over {times} rounds"
                        for sigma, rate, times in history)


def _check_step(noise_multiplier: float, sampling_rate: float) -> None:
    _positive("noise_multiplier", noise_multiplier)
    if not 0 < sampling_rate <= 1:
        raise AccountError(f"sampling_rate must lie above 0 and at most at 1, got {sampling_rate!r}")


def _positive(name: str, value: float | None) -> None:
    if value is None or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise AccountError(f"{name} must be a finite number above 0, got {value!r}")
