"""Membership inference on losses whose distance is known."""

import math

import numpy as np
import pytest
from scipy import stats

from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.evaluation.attacks.membership import delong, infer, losses_along
from privfedtalk_flare.privacy.gaussian import noise_multiplier_for
from privfedtalk_flare.privacy.outgoing import protect
from privfedtalk_flare.settings import PrivacySettings, ReliabilitySettings
from privfedtalk_flare.training.lane import IdentityUpdate


def losses(gap, n=300, seed=0):
    """Members' losses lie `gap` standard deviations lower: AUC Phi(gap / sqrt(2))."""
    rng = np.random.default_rng(seed)
    return rng.normal(1.0 - gap, 1.0, n), rng.normal(1.0, 1.0, n)


@pytest.mark.parametrize("gap", [0.5, 1.0, 2.0])
def test_the_auc_is_that_of_the_distributions(gap):
    found = infer(*losses(gap))
    assert found.low < stats.norm.cdf(gap / math.sqrt(2)) < found.high and found.members == found.others == 300


def test_the_auc_is_the_share_of_pairs_in_order_ties_counting_half():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    above = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
    assert delong(inside, outside)[0] == pytest.approx(above)


def test_the_interval_covers_as_often_as_it_says():
    covered = sum(found.low < 0.5 < found.high for found in (infer(*losses(0, 100, seed)) for seed in range(300)))
    assert 267 <= covered <= 298


def test_delongs_deviation_is_the_deviation_of_the_auc():
    found = [delong(*(-side for side in losses(1.0, 100, seed))) for seed in range(300)]
    assert np.mean([deviation for _, deviation in found]) == pytest.approx(np.std([auc for auc, _ in found]), rel=0.15)


def test_those_found_at_one_percent_false_positives():
    found = infer(*losses(3.0, 2000))
    assert found.caught == pytest.approx(stats.norm.cdf(3.0 - stats.norm.ppf(0.99)), abs=0.08)
    assert found.caught < found.most_caught < found.caught + 0.05
    assert infer(*losses(0.0, 2000)).caught < 0.03


def test_with_few_others_no_false_positive_is_allowed():
    others = np.arange(50.0)
    assert infer(np.full(20, 0.0), others).caught == 0.0
    assert infer(np.full(20, -1.0), others).caught == 1.0


def test_perfect_separation_has_an_interval():
    found = infer(np.zeros(50) - np.arange(50.0), np.arange(1.0, 51.0))
    assert found.auc == 1.0 and 0.95 < found.low < 1.0 == found.high


@pytest.mark.parametrize("bad", [np.zeros(19), np.zeros((20, 2)), np.full(20, np.nan)])
def test_losses_that_say_nothing_are_refused(bad):
    with pytest.raises(AttackError, match="members: needs at least 20 finite losses"):
        infer(bad, np.zeros(20))
    with pytest.raises(AttackError, match="others: needs"):
        infer(np.zeros(20), bad)


def attacked(epsilon, likeness, seed, n=400, size=20_000):
    """200 of 400 people at one site, through the real mechanism; guesses correlate with updates by `likeness`."""
    rng = np.random.default_rng(seed)
    own, drawn, guessed = (rng.normal(size=(n, size)) for _ in range(3))
    updates, guesses = (math.sqrt(likeness) * own + math.sqrt(1 - likeness) * other for other in (drawn, guessed))
    updates, guesses = (1 + each.astype(np.float32) for each in (updates, guesses))  # all have the 1 in common
    privacy, noise = PrivacySettings(mechanism="off"), 0.0
    if math.isfinite(epsilon):
        c = float(np.median(np.linalg.norm(updates, axis=1)))
        privacy = PrivacySettings(noise_multiplier=noise_multiplier_for(epsilon, 1e-5, 1), clip_norm=c)
        noise = privacy.noise_multiplier * c / (n // 2)
    theta = protect([IdentityUpdate(vector, 0.0, 1) for vector in updates[:n // 2]], size, privacy,
                    ReliabilitySettings(mode="uniform"), clip_norm=privacy.clip_norm, sample=None, warn=print).update
    losses = losses_along(theta, guesses, noise)
    return infer(losses[:n // 2], losses[n // 2:])


def test_without_noise_members_are_found_by_updates_that_are_half_like_theirs():
    assert attacked(math.inf, 0.5, 0).low > 0.65
    assert attacked(math.inf, 0.99, 0).auc > 0.999


def test_noise_hides_members_from_whoever_knows_their_updates():
    aucs = {epsilon: np.mean([attacked(epsilon, 0.99, seed).auc for seed in range(5)]) for epsilon in (8.0, 0.25)}
    assert aucs[0.25] < 0.55 < 0.65 < aucs[8.0]  # epsilon 8 hides nobody from an attacker who knows that much


def test_guesses_that_do_not_fit_are_refused():
    with pytest.raises(AttackError, match="guesses: needs at least 20 updates"):
        losses_along(np.zeros(5), np.zeros((30, 6)), 0.0)
    with pytest.raises(AttackError, match="guesses: needs at least 20 updates"):
        losses_along(np.zeros(6), np.zeros((19, 6)), 0.0)
