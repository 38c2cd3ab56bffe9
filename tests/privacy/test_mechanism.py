import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from privfedtalk_flare.federation.isfa import check_scalars
from privfedtalk_flare.privacy import mechanism
from privfedtalk_flare.privacy.mechanism import MechanismError, PoissonSample

FINITE = st.floats(-1e300, 1e300, allow_nan=False)


@given(arrays(np.float64, st.integers(1, 50), elements=FINITE), st.floats(1e-6, 1e6))
def test_clip_bounds_the_norm_and_keeps_the_direction(vector, bound):
    clipped = mechanism.clip(vector, bound)
    assert np.linalg.norm(clipped) <= bound
    largest = np.abs(vector).max()
    if largest:
        with np.errstate(under="ignore"):
            a, b = vector / largest, clipped / np.abs(clipped).max()
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_clip_leaves_short_vectors_alone():
    vector = np.array([0.3, -0.4])
    np.testing.assert_array_equal(mechanism.clip(vector, 0.5), vector)
    np.testing.assert_allclose(mechanism.clip(vector, 0.25), vector / 2, rtol=1e-9)


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([np.inf]), np.zeros((2, 2))])
def test_clip_refuses(bad):
    with pytest.raises(MechanismError):
        mechanism.clip(bad, 1.0)


def test_noise_is_normal_with_the_stated_deviation():
    noise = mechanism.gaussian(200_001, 0.7)
    assert noise.shape == (200_001,) and noise.dtype == np.float64
    assert abs(noise.mean()) < 5 * 0.7 / np.sqrt(noise.size)
    assert noise.std() == pytest.approx(0.7, rel=0.01)
    assert stats.kstest(noise / 0.7, "norm").pvalue > 1e-5
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.015


def test_noise_does_not_obey_a_seed():
    np.random.seed(1)
    first = mechanism.gaussian(100, 1.0)
    np.random.seed(1)
    assert not np.array_equal(first, mechanism.gaussian(100, 1.0))
    assert "np.random" not in inspect.getsource(mechanism).replace("never np.random", "")


def test_four_draws_are_added(monkeypatch):
    monkeypatch.setattr(mechanism, "_normal", lambda n: np.ones(n))
    np.testing.assert_array_equal(mechanism.gaussian(3, 0.5), np.full(3, 4 / 2 * 0.5))


def test_release_is_the_clipped_average_plus_noise_of_sigma_c_over_m():
    size, m = 100_000, 4
    vectors = [np.full(size, 3.0 * (i + 1)) for i in range(m)]  # all far above C
    out = mechanism.release(vectors, [1 / m] * m, noise_multiplier=2.0, clip_norm=0.5, identities=m)
    assert out.dtype == np.float32
    residual = out - 0.5 / np.sqrt(size)
    assert residual.std() == pytest.approx(2.0 * 0.5 / m, rel=0.02)
    assert abs(residual.mean()) < 5 * 0.25 / np.sqrt(size)


def test_one_identity_moves_the_release_by_at_most_c_over_m(monkeypatch):
    monkeypatch.setattr(mechanism, "gaussian", lambda size, std: np.zeros(size))
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=50) * 10 for _ in range(3)]
    args = {"noise_multiplier": 1.0, "clip_norm": 0.2, "identities": 3}
    full = mechanism.release(vectors, [1 / 3] * 3, **args)
    without = mechanism.release([np.zeros(50), *vectors[1:]], [1 / 3] * 3, **args)
    assert np.linalg.norm(full - without) <= 0.2 / 3 * (1 + 1e-6)


@pytest.mark.parametrize(("count", "weights", "match"), [
    (2, [1 / 3] * 3, "exactly m = 3"),
    (3, [0.5, 0.25, 0.25], r"must lie in \[0, 1/m"),
    (3, [-0.1, 0.1, 0.1], r"must lie in \[0, 1/m"),
    (3, [float("nan"), 0.1, 0.1], r"must lie in \[0, 1/m"),
])
def test_release_refuses_what_would_raise_the_sensitivity(count, weights, match):
    with pytest.raises(MechanismError, match=match):
        mechanism.release([np.zeros(5)] * count, weights, noise_multiplier=1.0, clip_norm=1.0, identities=3)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_release_refuses_no_noise(sigma):
    with pytest.raises(MechanismError, match="sigma"):
        mechanism.release([np.zeros(5)], [1.0], noise_multiplier=sigma, clip_norm=1.0, identities=1)


def test_a_sample_takes_each_identity_with_probability_q_and_anew_each_time():
    draws = np.stack([PoissonSample(0.3).of(500) for _ in range(200)])
    assert draws.mean() == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / draws.size))
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.3
    assert len({row.tobytes() for row in draws}) == 200
    assert PoissonSample(1.0).of(50).all()


def test_a_sample_is_drawn_once_for_whoever_asks_and_does_not_show_itself():
    sample = PoissonSample(0.5)
    first = sample.of(64)
    first[:] = True  # what one asker does to the answer changes nothing
    again = sample.of(64)
    assert np.array_equal(again, sample.of(64)) and not again.all()
    assert repr(sample) == "PoissonSample(0.5)"
    with pytest.raises(MechanismError, match="a sample of 64 identities was drawn, and is now asked about 63"):
        sample.of(63)
    for rate in (0.0, 1.5, float("nan")):
        with pytest.raises(MechanismError, match="sampling rate q"):
            PoissonSample(rate)


def test_a_sampled_release_means_the_same_sum_and_scales_its_noise_with_it():
    size, m, q = 100_000, 4, 0.25
    vectors = [np.full(size, 3.0), *[np.zeros(size)] * 3]  # one of four was sampled
    out = mechanism.release(vectors, [1 / m] * m, noise_multiplier=2.0, clip_norm=0.5, identities=m, sampling=q)
    residual = out - 0.5 / np.sqrt(size) / (q * m)
    assert residual.std() == pytest.approx(2.0 * 0.5 / (q * m), rel=0.02)
    assert abs(residual.mean()) < 5 * 1.0 / np.sqrt(size)


def test_coarse_score_is_the_rounded_mean():
    assert mechanism.release_score([0.5, 0.7], release="coarse") == 0.625  # .6 * 16 = 9.6 -> 10 / 16


def test_noised_score_is_noised_before_it_is_rounded(monkeypatch):
    monkeypatch.setattr(mechanism, "gaussian", lambda size, std: np.full(size, std))
    # mean .5 + .02 = .52 -> 8.32 -> 8/16; with the noise after rounding it would leave the grid
    assert mechanism.release_score([0.5, 0.5], release="noised", noise_multiplier=0.04) == 0.5
    assert mechanism.release_score([0.5, 0.5], release="noised", noise_multiplier=10.0) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_released_scores_are_always_accepted(scores):
    for kind in ("coarse", "noised"):
        score = mechanism.release_score(scores, release=kind, noise_multiplier=1.0)
        assert check_scalars(score, 1, max_clips=1)[0] == score


def test_score_refusals():
    for bad in ([], [1.5], [float("nan")]):
        with pytest.raises(MechanismError):
            mechanism.release_score(bad, release="coarse")
    with pytest.raises(MechanismError, match="the choices are coarse, noised"):
        mechanism.release_score([0.5], release="raw")
