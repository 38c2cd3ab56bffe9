"""A lying site against the weights and the norm check that run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.evaluation.attacks.liar import followed, largest_update, shares
from privfedtalk_flare.federation.isfa import ScalarError, check_scalars, isfa_weights, share_cap
from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.step import StepRefused, check_step
from privfedtalk_flare.settings import PrivacySettings, ReliabilitySettings

JOB, PRIVACY, VALUES = ReliabilitySettings(), PrivacySettings(), 90_112
C = PRIVACY.clip_norm
ERROR = 2 * (5e-5 * 0.02 + 1e-5)
"""What a site allows encryption to add to a coordinate in round 1, at values of .02."""


def capped(scores, counts):
    return isfa_weights(scores, counts, gamma=JOB.gamma, max_clips=JOB.max_clips, max_share=JOB.max_share)


def uncapped(scores, counts):
    """The paper's w_k ~ n_k exp(gamma s_k)."""
    return isfa_weights(scores, counts, gamma=JOB.gamma, max_clips=10 ** 9, max_share=len(scores))


def federation(sites, score=0.5, count=8):
    names = [f"site-{i + 1}" for i in range(sites)]
    return dict.fromkeys(names, score), dict.fromkeys(names, count)


def a_round(sites, sigma, weight):
    """(step of noise alone from the real mechanism, the receivers' check) of a round in which one site has `weight`."""
    weights = [weight, *[(1 - weight) / (sites - 1)] * (sites - 1)]
    step = sum(w * mechanism.release([np.zeros(VALUES)], [1.0], noise_multiplier=sigma, clip_norm=C, identities=1)
               for w in weights)
    noise = sigma * C * float(np.linalg.norm(weights))
    return step, lambda moved: check_step(moved, reach=C, noise_std=noise, error=ERROR)


def lie(sites, weigh, score=1.0, count=800):
    return shares(weigh, *federation(sites), "site-1", score=score, count=count)


def test_without_caps_a_count_100_times_takes_nearly_the_whole_model():
    found = lie(8, uncapped)
    assert found.honest == pytest.approx(1 / 8) and found.lying == pytest.approx(0.959, abs=1e-3)


def test_with_caps_the_same_claim_is_refused_and_the_best_one_that_is_not_gets_twice_the_equal_share():
    with pytest.raises(ScalarError, match=r"count 800 is out of range; it must lie in \[1, 64\]"):
        check_scalars(1.0, 800, max_clips=JOB.max_clips)
    assert check_scalars(1.0, JOB.max_clips, max_clips=JOB.max_clips)
    assert lie(8, capped, count=JOB.max_clips).lying == pytest.approx(2 / 8)


@pytest.mark.parametrize(("sites", "score_alone"), [(2, 0.622), (3, 0.452), (4, 0.355), (8, 0.191), (64, 0.0255)])
def test_a_score_of_1_where_others_have_a_half_buys_at_most_e_to_the_half(sites, score_alone):
    """Below the cap at every K: 1.65 times the weight at gamma 1."""
    assert lie(sites, capped, count=8).lying == pytest.approx(score_alone, abs=6e-4)


def test_at_two_sites_there_is_no_cap_and_a_liar_takes_most():
    assert share_cap(2, JOB.max_share) is None
    assert lie(2, capped, count=JOB.max_clips).lying == pytest.approx(0.930, abs=1e-3)


@given(st.integers(3, 64), st.floats(1, 4), st.floats(0, 10), st.data())
def test_no_claims_of_any_sites_pass_the_cap(sites, max_share, gamma, data):
    names = [f"site-{i}" for i in range(sites)]
    claims = data.draw(st.lists(st.tuples(st.integers(0, 16), st.integers(1, 64)), min_size=sites, max_size=sites))
    scores = {name: score / 16 for name, (score, _) in zip(names, claims, strict=True)}
    counts = {name: count for name, (_, count) in zip(names, claims, strict=True)}
    weights = isfa_weights(scores, counts, gamma=gamma, max_clips=64, max_share=max_share)
    assert max(weights.values()) <= max(max_share / sites, 1 / sites) * (1 + 1e-9)


@pytest.mark.parametrize(("sites", "sigma"), [(2, 1.0), (2, 4.0), (3, 4.0), (8, 1.0), (8, 4.0), (32, 1.0)])
def test_receivers_refuse_a_step_with_an_update_1000_times_the_clip(sites, sigma):
    step, check = a_round(sites, sigma, 1 / sites)
    assert followed(check, step)
    update = np.full(VALUES, 1000 * C / np.sqrt(VALUES))
    with pytest.raises(StepRefused, match="A site sent more than it may"):
        check(step + update / sites)


@pytest.mark.parametrize(("sites", "sigma", "at_least"), [(32, 4.0, 1000), (64, 4.0, 1000), (64, 1.0, 700)])
def test_many_sites_and_much_noise_hide_a_large_update_below_the_check(sites, sigma, at_least):
    """What the check cannot do, so that nobody believes it: 1,000 C pass unseen at sigma 4 from 32 sites on."""
    step, check = a_round(sites, sigma, 1 / sites)
    assert largest_update(check, step, 1 / sites, C) > at_least


@pytest.mark.parametrize(("sites", "sigma", "limit"), [(2, 1.0, 109), (2, 4.0, 367), (8, 1.0, 257), (8, 4.0, 783)])
def test_the_limit_is_the_one_that_the_threat_table_states(sites, sigma, limit):
    """Expected: w x C = sqrt((C + s (sqrt(D) + 6) + e sqrt(D))^2 - D s^2); a round's own noise moves it."""
    found = np.mean([largest_update(*reversed(a_round(sites, sigma, 1 / sites)), 1 / sites, C) for _ in range(5)])
    assert found == pytest.approx(limit, rel=0.1)


def test_a_larger_share_lowers_what_passes_and_raises_what_it_moves():
    equal, cap = (largest_update(*reversed(a_round(8, 4.0, w)), w, C) * w for w in (1 / 8, 2 / 8))
    assert equal < 1.25 * cap and cap / (2 / 8) < equal / (1 / 8)


def test_a_check_that_bounds_nothing_is_an_error():
    with pytest.raises(AttackError, match="bounds nothing"):
        largest_update(lambda step: None, np.zeros(10), 0.5, C)


def test_refusals():
    with pytest.raises(AttackError, match="weight in"):
        largest_update(lambda step: None, np.zeros(10), 0.0, C)
    with pytest.raises(AttackError, match="no site of this round; the sites are site-1, site-2"):
        shares(capped, *federation(2), "site-9", score=1.0, count=1)
    step, check = a_round(2, 1.0, 0.5)
    assert largest_update(check, step * 3, 0.5, C) == 0.0
