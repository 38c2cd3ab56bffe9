"""Membership inference on losses whose distance is known."""

import math

import numpy as np
import pytest
from scipy import stats

from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.evaluation.attacks.membership import delong, infer


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
