import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedtalk_flare.federation import isfa

SITES = st.dictionaries(st.integers(0, 99).map(lambda i: f"site-{i}"),
                        st.tuples(st.integers(0, 16).map(lambda i: i / 16), st.integers(1, 500)),
                        min_size=1, max_size=12)


def split(sites):
    return {k: v[0] for k, v in sites.items()}, {k: v[1] for k, v in sites.items()}


@given(SITES, st.floats(0, 10), st.integers(1, 64), st.floats(1, 4))
def test_weights_are_shares_below_the_cap_and_keep_the_order(sites, gamma, max_clips, max_share):
    scores, counts = split(sites)
    weights = isfa.isfa_weights(scores, counts, gamma=gamma, max_clips=max_clips, max_share=max_share)
    assert set(weights) == set(sites)
    assert math.isclose(sum(weights.values()), 1.0, rel_tol=1e-12)
    cap = isfa.share_cap(len(sites), max_share)
    assert all(0 <= w <= (cap or 1.0) * (1 + 1e-12) for w in weights.values())
    raw = {k: min(counts[k], max_clips) * math.exp(gamma * scores[k]) for k in sites}
    order = sorted(sites, key=raw.__getitem__)
    assert all(weights[a] <= weights[b] * (1 + 1e-9) for a, b in itertools.pairwise(order))


@given(SITES)
def test_gamma_zero_without_cap_is_fedavg_exactly(sites):
    scores, counts = split(sites)
    weights = isfa.isfa_weights(scores, counts, gamma=0.0, max_clips=500, max_share=12.0)
    assert weights == {site: counts[site] / sum(counts.values()) for site in sites}


def test_water_filling_by_hand():
    scores, counts = dict.fromkeys("abcd", 0.5), {"a": 60, "b": 20, "c": 10, "d": 10}
    # cap 1.2 / 4 = .3: a is cut to .3, the rest share .7 as 20:10:10 -> b .35 is cut too, c and d share .4
    weights = isfa.isfa_weights(scores, counts, gamma=1.0, max_clips=64, max_share=1.2)
    assert weights == pytest.approx({"a": 0.3, "b": 0.3, "c": 0.2, "d": 0.2})


def test_max_share_one_makes_all_equal():
    scores, counts = dict.fromkeys("abc", 1.0), {"a": 1, "b": 9, "c": 9}
    weights = isfa.isfa_weights(scores, counts, gamma=1.0, max_clips=9, max_share=1)
    assert weights == pytest.approx(dict.fromkeys("abc", 1 / 3))


def test_two_sites_have_no_cap():
    assert isfa.share_cap(2, 1.0) is None and isfa.share_cap(3, 2.0) == pytest.approx(2 / 3)
    weights = isfa.isfa_weights({"a": 1.0, "b": 0.0}, {"a": 8, "b": 8}, gamma=10, max_clips=64, max_share=1.0)
    assert weights["a"] > 0.9999


def test_score_moves_the_weight_as_the_paper_says():
    weights = isfa.isfa_weights({"a": 1.0, "b": 0.5}, {"a": 5, "b": 5}, gamma=2.0, max_clips=64, max_share=2)
    assert weights["a"] / weights["b"] == pytest.approx(math.e)


def test_sealed_ratios_are_metadatas_for_one_identity_a_site():
    scores, counts = {"a": 0.25, "b": 1.0}, {"a": 10, "b": 10}
    weights = isfa.isfa_weights(scores, counts, gamma=1.5, max_clips=64, max_share=2)
    a, b = (isfa.sealed_weights([scores[k]], [10], gamma=1.5, max_clips=64)[0] for k in "ab")
    assert a / b == pytest.approx(weights["a"] / weights["b"])


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 500)), min_size=1, max_size=9), st.floats(0, 10))
def test_sealed_weights_never_exceed_one_over_m(people, gamma):
    v = isfa.sealed_weights([s for s, _ in people], [n for _, n in people], gamma=gamma, max_clips=64)
    assert v.shape == (len(people),) and (v >= 0).all() and (v <= 1 / len(people)).all()


def test_uniform():
    assert isfa.uniform(["b", "a"]) == {"a": 0.5, "b": 0.5}
    with pytest.raises(isfa.ScalarError):
        isfa.uniform([])


@pytest.mark.parametrize("score", [1e9, -0.0625, float("nan"), float("inf"), 1.0625, 0.3, "1", None, True])
def test_bad_scores_are_refused(score):
    with pytest.raises(isfa.ScalarError, match="score"):
        isfa.check_scalars(score, 3, max_clips=64)


@pytest.mark.parametrize("count", [0, -1, 65, 1e9, 2.5, 2.0, float("nan"), "3", None, True])
def test_bad_counts_are_refused(count):
    with pytest.raises(isfa.ScalarError, match="count"):
        isfa.check_scalars(0.5, count, max_clips=64)


def test_good_scalars_pass_unchanged():
    assert isfa.check_scalars(np.float64(0.0625), np.int64(64), max_clips=64) == (0.0625, 64)
    assert isfa.check_scalars(1, 1, max_clips=1) == (1.0, 1)


@given(st.floats(0, 1))
def test_coarse_is_near_and_accepted(score):
    released = isfa.coarse(score)
    assert abs(released - score) <= 1 / 32
    assert isfa.check_scalars(released, 1, max_clips=1) == (released, 1)


def test_coarse_refuses_what_is_no_score():
    with pytest.raises(isfa.ScalarError):
        isfa.coarse(float("nan"))
