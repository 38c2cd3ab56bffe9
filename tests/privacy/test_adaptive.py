"""Adaptive clipping: the released bit, and where C goes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.adaptive import next_clip_norm, release_bit
from privfedtalk_flare.privacy.mechanism import MechanismError

RULE = {"quantile": 0.5, "step": 0.2, "bounds": (0.01, 1.0)}


def updates(norms):
    return [np.full(4, norm / 2) for norm in norms]


def test_the_bit_counts_who_was_within_c_and_leaves_out_who_took_no_part(monkeypatch):
    monkeypatch.setattr(mechanism, "gaussian", lambda size, std: np.zeros(size))
    norms = updates([0.5, 0.9, 1.0, 3.0])
    assert release_bit(norms, [True] * 4, 1.0, noise_multiplier=1.0) == 0.25  # 3 within, 1 above
    assert release_bit(norms, [False, True, True, True], 1.0, noise_multiplier=1.0) == 0.125
    assert release_bit(norms, [True, False, False, True], 1.0, noise_multiplier=1.0, sampling=0.5) == 0.0
    with pytest.raises(MechanismError, match="one update an identity"):
        release_bit(norms, [True], 1.0, noise_multiplier=1.0)


def test_one_identity_moves_the_bit_by_half_of_one_over_m(monkeypatch):
    monkeypatch.setattr(mechanism, "gaussian", lambda size, std: np.zeros(size))
    norms = updates([0.5] * 3 + [2.0] * 2)
    full = release_bit(norms, [True] * 5, 1.0, noise_multiplier=1.0)
    without = release_bit(norms, [True] * 4 + [False], 1.0, noise_multiplier=1.0)
    assert abs(full - without) == pytest.approx(0.5 / 5)


def test_the_bit_carries_the_accounted_noise():
    m, q, sigma = 400, 0.5, 20.0
    drawn = [release_bit(updates([0.5, 2.0]) * (m // 2), [True] * m, 1.0, noise_multiplier=sigma, sampling=q)
             for _ in range(400)]
    assert np.std(drawn) == pytest.approx(sigma / (q * m), rel=0.15)
    assert abs(np.mean(drawn)) < 5 * sigma / (q * m) / math.sqrt(400)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_c_finds_the_quantile_of_the_norms_and_stays(quantile):
    """Norms as people have them, two sites of 100; the paper starts as far off and takes about as many rounds."""
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0.0, 0.5, size=(2, 100))
    rule = {**RULE, "quantile": quantile, "bounds": (1e-3, 1e3)}
    c, seen = 0.05, []
    for _ in range(120):
        bits = [release_bit(updates(site), [True] * 100, c, noise_multiplier=5.0) for site in norms]
        c = next_clip_norm(c, bits, **rule)
        seen.append(float((norms <= c).mean()))
    assert np.mean(seen[-40:]) == pytest.approx(quantile, abs=0.05)


@given(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=5), st.floats(0.01, 1.0), st.floats(-0.5, 0.5))
def test_no_bits_move_c_beyond_its_step_or_its_bounds_and_one_site_only_by_its_part(bits, c, lie):
    after, lied = next_clip_norm(c, bits, **RULE), next_clip_norm(c, [lie, *bits[1:]], **RULE)
    assert 0.01 <= after <= 1.0
    assert abs(math.log(after / c)) <= 0.1 + 1e-9  # step (share - quantile), at most .2 times a half
    assert abs(math.log(lied / after)) <= 0.2 / len(bits) + 1e-9


def test_sites_count_alike():
    assert next_clip_norm(0.1, [0.5, -0.25], **RULE) == pytest.approx(0.1 * math.exp(-0.2 * 0.125))
    with pytest.raises(MechanismError, match="at least one site"):
        next_clip_norm(0.1, [], **RULE)
