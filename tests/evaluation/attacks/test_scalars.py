"""How often an observer of the scores names the right person: measured for stated spreads, on the real release."""

import numpy as np
import pytest

from privfedtalk_flare.evaluation.attacks import AttackError
from privfedtalk_flare.evaluation.attacks.scalars import Spread, name_people, spread_of
from privfedtalk_flare.privacy.mechanism import release_score

WIDE = Spread(mean=0.8, between=0.1, within=0.02)
"""Assumed: people as far apart as 1.6 steps of the grid."""
ALIKE = Spread(mean=0.875, between=0.01, within=0.01)
"""Assumed: people whose means lie in one cell of 1/16, as both sites' in the demo of the README."""
APART = spread_of([[0.75, 0.75, 0.75], [0.938, 0.938, 0.875]])
"""What an earlier demo of other clips published."""


def coarse(scores):
    return release_score(scores, release="coarse")


def noised(scores):
    return release_score(scores, release="noised", noise_multiplier=1.0)


def sealed(scores):
    return None


def test_coarse_scores_of_people_who_differ_name_them():
    """Eight sites of one person each, 20 rounds: public metadata is what it says."""
    found = name_people(coarse, WIDE, sites=8, rounds=20)
    assert found.worst > 0.75 and found.person > 0.5 and found.chance == 1 / 8


def test_coarse_scores_of_people_who_are_alike_say_little():
    found = name_people(coarse, ALIKE, sites=8, rounds=20)
    assert found.worst < 0.6 and found.person < 0.45


def test_coarse_scores_of_two_sites_whose_people_differ_tell_which_is_worse():
    """As `privacy/THREATS.md` and the README say: they are public."""
    found = name_people(coarse, APART, sites=2, rounds=3)
    assert found.worst > 0.8 and found.chance == 1 / 2


def test_noised_scores_name_hardly_anyone_over_20_rounds():
    """sigma_s 1 and one person a site: noise of 1 on a score in [0, 1]."""
    found = name_people(noised, WIDE, sites=8, rounds=20)
    assert found.worst < 0.4 and found.person < 0.3


def test_more_rounds_average_the_noise_away_as_the_account_says():
    few, many = (name_people(noised, WIDE, sites=4, rounds=rounds, trials=100) for rounds in (2, 500))
    assert many.worst > few.worst + 0.1


def test_sealed_scores_leave_the_observer_with_chance():
    found = name_people(sealed, WIDE, sites=8, rounds=20, trials=1000)
    assert abs(found.worst - found.chance) < 5 * found.deviation
    assert abs(found.person - found.chance) < 0.03


def test_several_people_at_a_site_hide_the_worst_one_among_them():
    alone, ten = (name_people(coarse, WIDE, sites=8, rounds=20, people=people) for people in (1, 10))
    assert ten.worst < alone.worst - 0.2


def test_the_spread_of_a_run_is_found_again():
    rng = np.random.default_rng(0)
    true = rng.normal(0.6, 0.1, (300, 1))
    found = spread_of(true + rng.normal(0, 0.03, (300, 20)))
    assert found.mean == pytest.approx(0.6, abs=0.02)
    assert found.between == pytest.approx(0.1, rel=0.15) and found.within == pytest.approx(0.03, rel=0.05)


def test_refusals():
    with pytest.raises(AttackError, match="two sites"):
        name_people(coarse, WIDE, sites=1, rounds=1)
    with pytest.raises(AttackError, match=r"lies in \[0, 1\]"):
        Spread(0.5, float("nan"), 0.1)
    with pytest.raises(AttackError, match="at least two sites in at least two rounds"):
        spread_of([[0.5, 0.5]])
