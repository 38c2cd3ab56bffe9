import math

import numpy as np
import pytest

from privfedtalk_flare.snr import known_snr, snr_bound, snr_of_step


def test_snr_finds_the_ratio_that_was_put_in():
    rng = np.random.default_rng(3)
    size, std = 90_112, 0.05
    signal = rng.normal(size=size)
    signal *= 0.5 * std * math.sqrt(size) / np.linalg.norm(signal)
    step = signal + rng.normal(size=size) * std
    assert snr_of_step(float(np.linalg.norm(step)), std, size) == pytest.approx(0.5, rel=0.05)


def test_a_signal_lost_in_noise_is_no_larger_than_clipping_allows():
    size, std, reach = 90_112, 0.004 / math.sqrt(2), 0.004
    norms = [np.linalg.norm(np.random.default_rng(seed).normal(size=size) * std) for seed in range(8)]
    assert max(snr_of_step(float(norm), std, size) for norm in norms) > 0.03  # by chance alone
    assert max(snr_of_step(float(norm), std, size, reach) for norm in norms) == pytest.approx(0.0047, abs=1e-4)


def test_snr_at_its_ends():
    assert snr_of_step(1.0, 0.0, 10) == math.inf
    assert snr_of_step(0.1, 1.0, 10) == 0.0
    for bad in [(math.nan, 1.0, 1), (1.0, -1.0, 1), (1.0, 1.0, 0)]:
        with pytest.raises(ValueError, match="finite step norm"):
            snr_of_step(*bad)


def test_four_people_at_sigma_one():
    assert snr_bound(4, 1.0, 2, 90_112) == pytest.approx(0.0094, abs=1e-4)


def test_an_estimate_counts_from_where_chance_alone_does_not_make_it():
    """90,112 values: .097. What noise alone may show below that says nothing, and the bound does."""
    assert known_snr(0.3, 0.5, 90_112) == (0.3, False) and known_snr(0.098, 0.5, 90_112) == (0.098, False)
    assert known_snr(0.0, 0.0094, 90_112) == known_snr(0.0091, 0.0094, 90_112) == (0.0094, True)
    assert known_snr(0.01, 5.0, 90_112) == (pytest.approx(0.0976, abs=1e-4), True)
    assert known_snr(None, 0.2, 90_112) == (0.2, True)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.11, 0.2])
def test_what_is_said_of_a_signal_is_true_but_for_chance(ratio):
    """Two standard deviations: one estimate in 40 is too large by chance, and one bound in 40 too low."""
    rng, size, tries = np.random.default_rng(5), 22_528, 2000
    squares = rng.noncentral_chisquare(size, size * ratio ** 2, tries) if ratio else rng.chisquare(size, tries)
    told = [known_snr(snr_of_step(math.sqrt(square), 1.0, size), math.inf, size) for square in squares]
    assert sum(most and value < ratio for value, most in told) <= 0.04 * tries
    if ratio == 0.0:
        assert sum(not most for _, most in told) <= 0.04 * tries
    if ratio == 0.2:
        assert sum(not most for _, most in told) >= 0.9 * tries
