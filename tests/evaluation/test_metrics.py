import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from privfedtalk_flare.evaluation import metrics as m


@pytest.fixture
def noisy(clip):
    noise = np.random.default_rng(0).normal(0, 6, clip.frames.shape)
    return np.clip(clip.frames + noise, 0, 255).astype(np.uint8)


def test_psnr_equals_its_formula(clip, noisy, mask):
    error = (noisy.astype(np.float64) - clip.frames) ** 2
    assert m.psnr(noisy, clip.frames) == pytest.approx(10 * math.log10(255**2 / error.mean()), abs=1e-3)
    assert m.psnr_mask(noisy, clip.frames, mask) == pytest.approx(
        10 * math.log10(255**2 / error[:, mask].mean()), abs=1e-3)


def test_psnr_mask_sees_the_mask_only(clip, noisy, mask):
    outside = np.where(mask[..., None], clip.frames, noisy)
    assert m.psnr_mask(outside, clip.frames, mask) == m.PSNR_CEILING > m.psnr(outside, clip.frames)


def test_ssim_equals_wang_2004(clip, noisy):
    """Written anew with scipy: gaussian windows, moments of the window, edges mirrored."""
    def blurred(x):
        return ndimage.gaussian_filter(x, 1.5, truncate=5 / 1.5, mode="mirror")
    values = []
    for real, other in zip(clip.frames[:4].astype(np.float64), noisy[:4].astype(np.float64), strict=True):
        for a, b in zip(real.transpose(2, 0, 1), other.transpose(2, 0, 1), strict=True):
            ma, mb = blurred(a), blurred(b)
            va, vb, ab = blurred(a * a) - ma**2, blurred(b * b) - mb**2, blurred(a * b) - ma * mb
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append((2 * ma * mb + c1) * (2 * ab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert m.ssim(noisy[:4], clip.frames[:4]) == pytest.approx(np.mean(values), abs=1e-4)


def test_flicker_is_the_change_of_pixels_that_should_rest(corpus, clip, noisy, mask):
    total, count = 0.0, 0
    for t in range(1, 10):
        for row, column in zip(*np.nonzero(mask), strict=True):
            real, made = (np.abs(x[t, row, column].astype(int) - x[t - 1, row, column]).mean()
                          for x in (clip.frames, noisy))
            if real < m.STILL:
                total, count = total + made, count + 1
    assert m.flicker(noisy[:10], clip.frames[:10], mask) == pytest.approx(total / count, rel=1e-5)
    own = [m.flicker(c.frames, c.frames, mask) for c in corpus]
    assert 0.15 < np.mean(own) < 0.35, "H.264 alone should leave about .25 grey levels"


def test_flicker_ignores_wrong_motion_where_the_real_mouth_moves(mask):
    real = np.zeros((3, 64, 64, 3), np.uint8)
    real[1, 44:52, 24:40] = 90
    generated = np.zeros_like(real)
    assert m.flicker(generated, real, mask) == 0.0
    generated[1, 44:52, 24:40] = 255
    assert m.flicker(generated, real, mask) == 0.0
    generated[1, 54:56, 24:40] = 9
    assert m.flicker(generated, real, mask) > 0.0


def test_flicker_without_a_still_pixel_is_undefined(mask):
    real = np.zeros((3, 64, 64, 3), np.uint8)
    real[1] = 200
    assert math.isnan(m.flicker(real, real, mask))
    assert math.isnan(m.flicker(real[:1], real[:1], mask))


def test_flicker_gap_and_motion_ratio_equal_their_formulas(clip, noisy, mask):
    real, made = (np.diff(x.astype(np.float64), axis=0)[:, mask] for x in (clip.frames, noisy))
    assert m.flicker_gap(noisy, clip.frames, mask) == pytest.approx(np.abs(made - real).mean(), rel=1e-5)
    ratio = np.abs(made).sum() / np.abs(real).sum()
    assert ratio > 1
    assert m.motion_ratio(noisy, clip.frames, mask) == pytest.approx(1 / ratio, rel=1e-5)
    assert m.motion_ratio(clip.frames, noisy, mask) == pytest.approx(1 / ratio, rel=1e-5)


def test_motion_ratio_of_two_frozen_clips_is_undefined(mask):
    frozen = np.zeros((3, 64, 64, 3), np.uint8)
    assert math.isnan(m.motion_ratio(frozen, frozen, mask))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_sync_is_pearsons_r(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 40))
    assert m.sync(a + b, b) == pytest.approx(stats.pearsonr(a + b, b).statistic, abs=1e-12)


@given(st.integers(-5, 5), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_sync_offset_finds_the_delay_of_the_picture(lag, seed):
    long = ndimage.gaussian_filter1d(np.random.default_rng(seed).normal(size=100), 1.5)
    truth, recovered = long[10:90], long[10 - lag:90 - lag]
    assert m.sync_offset(recovered, truth) == lag


def test_a_mouth_that_rests_follows_nothing():
    truth = np.sin(np.arange(30.0))
    assert m.sync(np.full(30, 0.1), truth) == 0.0
    assert math.isnan(m.sync_offset(np.full(30, 0.1), truth))
    assert math.isnan(m.sync(truth, np.zeros(30))) and math.isnan(m.sync_offset(truth, np.zeros(30)))


@pytest.mark.parametrize("of", [m.sync, m.sync_offset])
def test_an_unknown_truth_gives_no_number(of):
    truth = np.sin(np.arange(30.0))
    assert math.isnan(of(truth, np.full(30, np.nan))) and math.isnan(of(np.full(30, np.nan), truth))


def test_identity_is_the_mean_cosine():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, 16)), rng.normal(size=(3, 16))
    each = [x @ y / math.sqrt((x @ x) * (y @ y)) for x in a for y in b]
    assert m.identity(a, b) == pytest.approx(np.mean(each))
    assert m.identity(7 * a, a[:1]) == pytest.approx(m.identity(a, 0.1 * a[:1]))
    assert math.isnan(m.identity(np.zeros((1, 16)), b)) and math.isnan(m.identity(np.full((1, 16), np.nan), b))


def test_wrong_shapes_are_named(clip, mask):
    with pytest.raises(ValueError, match=r"\(3, 64, 64, 3\) \(generated\) and \(50, 64, 64, 3\) \(real\)"):
        m.psnr(clip.frames[:3], clip.frames)
    with pytest.raises(ValueError, match=r"mask of shape \(64, 64\), dtype uint8, 768 set; expected a boolean"):
        m.psnr_mask(clip.frames, clip.frames, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="at least one pixel set"):
        m.flicker(clip.frames, clip.frames, np.zeros_like(mask))
    with pytest.raises(ValueError, match=r"\(4,\) \(recovered\) and \(5,\) \(truth\)"):
        m.sync(np.zeros(4), np.zeros(5))
    with pytest.raises(ValueError, match=r"embeddings of shape \(2, 3\) and \(2, 4\)"):
        m.identity(np.ones((2, 3)), np.ones((2, 4)))
