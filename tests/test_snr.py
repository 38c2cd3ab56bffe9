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


def test_an_estimate_counts_from_where_it_resolves_anything():
    """90,112 values: .058. What noise alone may show below that says nothing, and the bound does."""
    assert known_snr(0.3, 0.5, 90_112) == (0.3, False)
    assert known_snr(0.0, 0.0094, 90_112) == known_snr(0.0091, 0.0094, 90_112) == (0.0094, True)
    assert known_snr(0.01, 5.0, 90_112) == (pytest.approx(0.0577, abs=1e-4), True)
    assert known_snr(None, 0.2, 90_112) == (0.2, True)
