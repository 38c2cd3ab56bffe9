"""The canary audit on the site's real mechanism: sound runs pass, each fault that breaks the promise is reported."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.evaluation.attacks.canaries import Canaries, audit, chance, count, fit, play
from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.accountant import Release, views
from privfedtalk_flare.privacy.gaussian import epsilon_of, noise_multiplier_for
from privfedtalk_flare.privacy.step import check_step

C, DELTA, ROUNDS, SEEDS = 0.004, 1e-5, 20, range(5)


def site(sigma, share=1.0):
    """One round of a site that draws `share` of the noise it accounts for, as its receivers check it."""
    def published(updates):
        m = len(updates)
        step = mechanism.release(updates, [1 / m] * m, noise_multiplier=sigma * share, clip_norm=C, identities=m)
        check_step(step, reach=C, noise_std=sigma * C / m)
        return step
    return published


def promise(epsilon):
    """(sigma, the epsilon that the ledger's account states for it)."""
    sigma = noise_multiplier_for(epsilon, DELTA, ROUNDS)
    return sigma, views([Release(sigma)] * ROUNDS, DELTA)["receivers"].epsilon


@pytest.mark.parametrize("epsilon", [2.0, 4.0, 8.0])
def test_no_lower_bound_exceeds_the_ledgers_epsilon_over_five_seeds(epsilon):
    sigma, promised = promise(epsilon)
    for seed in SEEDS:
        found = audit(site(sigma), promised, DELTA, epsilon_of, Canaries(rounds=ROUNDS, seed=seed))
        assert found.canaries == 256
        assert found.counted <= promised and found.fitted.sure <= promised and not found.violation, found


@pytest.mark.parametrize("epsilon", [2.0, 4.0, 8.0])
def test_a_quarter_of_the_accounted_noise_is_reported_as_a_violation(epsilon):
    sigma, promised = promise(epsilon)
    for seed in SEEDS:
        found = audit(site(sigma, 0.25), promised, DELTA, epsilon_of, Canaries(rounds=ROUNDS, seed=seed))
        assert found.violation and found.fitted.sure > promised, found


def test_counting_alone_shows_a_quarter_of_the_noise_with_enough_canaries_for_the_promise():
    """1,024 canaries, promised 2: no assumption about the scores' distribution is needed."""
    sigma, promised = promise(2.0)
    canaries = Canaries(canaries=1024, rounds=ROUNDS)
    assert audit(site(sigma, 0.25), promised, DELTA, epsilon_of, canaries).counted > promised
    assert audit(site(sigma), promised, DELTA, epsilon_of, canaries).counted < promised


def test_counting_256_canaries_cannot_refute_a_promise_of_8():
    sigma, promised = promise(8.0)
    found = audit(site(sigma, 0.25), promised, DELTA, epsilon_of, Canaries(rounds=ROUNDS))
    assert found.counted <= found.countable < 4.1


def test_the_attack_is_as_strong_as_the_account_assumes():
    """Otherwise a low number would say nothing: mu over five seeds lies within five deviations of the true one."""
    sigma, _ = promise(8.0)
    true = math.sqrt(ROUNDS) / sigma
    found = [audit(site(sigma), 8.0, DELTA, epsilon_of, Canaries(rounds=ROUNDS, seed=seed)).mu for seed in SEEDS]
    deviation = math.sqrt(4 / 256 * (1 + true ** 2 / 8)) / math.sqrt(len(SEEDS))
    assert abs(np.mean(found) - true) < 5 * deviation


def test_a_missing_clip_is_reported():
    def published(updates):
        m = len(updates)
        return mechanism.average(updates, [1 / m] * m, identities=m) + mechanism.gaussian(updates[0].size, 2.0 * C / m)

    assert audit(published, 8.0, DELTA, epsilon_of, Canaries(rounds=2)).violation


def test_a_run_without_noise_is_a_violation_of_any_promise():
    def published(updates):
        return mechanism.average(updates, [1 / len(updates)] * len(updates), identities=len(updates))

    found = audit(published, 1e6, DELTA, epsilon_of, Canaries(rounds=1))
    assert found.violation and math.isinf(found.fitted.sure)


def test_canaries_do_not_disturb_each_other():
    taken, scores = play(lambda updates: np.sum(updates, axis=0), Canaries(rounds=3, canaries=200, values=2050))
    np.testing.assert_allclose(scores, 3.0 * taken, atol=1e-12)


@given(st.integers(1, 256), st.floats(0.01, 6))
def test_without_delta_the_chance_is_the_binomial_tail(guesses, epsilon):
    right = max(1, guesses * 3 // 4)
    expected = stats.binom.sf(right - 1, guesses, math.exp(epsilon) / (1 + math.exp(epsilon)))
    assert chance(256, guesses, right, epsilon, 0.0) == pytest.approx(expected, rel=1e-9)


def test_counting_is_right_and_tight_about_randomised_response():
    """The mechanism for which counting is tight: each canary's bit is told truly with probability e^2 / (1 + e^2)."""
    rng, found = np.random.default_rng(5), []
    for _ in range(60):
        taken = rng.random(2000) < 0.5
        told = np.where(rng.random(taken.size) < 1 / (1 + math.exp(-2.0)), taken, ~taken)
        found.append(count(np.where(told, 1.0, -1.0) + rng.normal(size=taken.size) * 1e-9, taken, 0.0, 0.05))
    assert np.mean(np.array(found) > 2.0) <= 0.1 and np.median(found) > 1.75


def test_the_fits_bound_misses_as_often_as_it_says():
    rng = np.random.default_rng(1)
    missed = sum(fit(rng.normal(1.5, 1, 120), rng.normal(0, 1, 136), [0.1])[1][0] > 1.5 for _ in range(400))
    assert 20 <= missed <= 62  # 10 % of 400, give or take 3.5 deviations


@pytest.mark.parametrize(("promised", "delta"), [(0.0, 1e-5), (float("nan"), 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_a_promise_that_is_none_is_refused(promised, delta):
    with pytest.raises(AttackError, match="epsilon above 0"):
        audit(site(1.0), promised, delta, epsilon_of)


def test_refusals_name_what_is_wrong():
    with pytest.raises(AttackError, match="values must be at least 256"):
        play(site(1.0), Canaries(values=100))
    with pytest.raises(AttackError, match=r"shape \(3,\), needs \(2048,\)"):
        play(lambda updates: np.zeros(3), Canaries())
