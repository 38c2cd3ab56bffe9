import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from privfedtalk_flare.data.portrait import SIZE, mask_box
from privfedtalk_flare.data.synthetic import Person, render_clip
from privfedtalk_flare.reliability import identity_consistency, score, temporal_stability

TAU = 4.0


def embed(frames):
    """A plain embedding (coarse pixels of the lower two thirds); how the real one is trained has its own tests."""
    coarse = frames[:, SIZE // 3:].astype(np.float64).reshape(len(frames), -1, 3)[:, ::13]
    return (coarse - coarse.mean(1, keepdims=True)).reshape(len(frames), -1)


@pytest.fixture(scope="module")
def mask():
    made = np.zeros((SIZE, SIZE), bool)
    made[mask_box(SIZE)] = True
    return made


def spoiled(real, mask, how):
    rng, changed = np.random.default_rng(5), real.astype(np.float32)
    if how == "frozen":
        changed[:, mask] = changed[0, mask]
    elif how == "blurred":
        changed[:, mask] = gaussian_filter(changed, (0, 1.2, 1.2, 0))[:, mask]
    elif how == "blurred in time":
        changed[:, mask] = gaussian_filter(changed, (1.2, 0, 0, 0))[:, mask]
    elif how == "jittered":
        for frame, source in zip(changed, real, strict=True):
            frame[mask] = np.roll(source, rng.integers(-1, 2, 2), axis=(0, 1))[mask]
    elif how == "noisy":
        changed[:, mask] += rng.normal(0, 4, changed[:, mask].shape)
    elif how == "blank":
        changed[:, mask] = float("nan")
    return changed


def scored(generated, real, mask, alpha=0.5):
    return score(identity_consistency(embed(generated), embed(real)), temporal_stability(generated, real, mask, TAU),
                 alpha)


@pytest.mark.parametrize("how", ["frozen", "blurred", "blurred in time", "jittered", "noisy", "blank"])
@pytest.mark.parametrize("person", range(4))
def test_what_is_spoiled_scores_below_the_real_clip(person, how, mask):
    real = render_clip(Person.draw(99, person), 0, 1.0).frames
    generated = spoiled(real, mask, how)
    assert scored(generated, real, mask) < scored(real, real, mask) - 0.05
    assert temporal_stability(generated, real, mask, TAU) < 0.85 * temporal_stability(real, real, mask, TAU)


def test_a_frozen_clip_has_no_stability_and_a_broken_one_no_score(mask):
    real = render_clip(Person.draw(99, 0), 0, 1.0).frames
    assert temporal_stability(spoiled(real, mask, "frozen"), real, mask, TAU) == 0.0
    assert scored(spoiled(real, mask, "blank"), real, mask) == 0.0
    assert scored(real, real, mask) > 0.9


def test_another_person_is_less_consistent(mask):
    first, second = (render_clip(Person.draw(99, person), 0, 1.0).frames for person in (0, 1))
    assert identity_consistency(embed(second), embed(first)) < identity_consistency(embed(first), embed(first)) - 0.05


def test_the_score_is_the_mixture_of_the_paper():
    assert score(0.8, 0.4, 0.25) == pytest.approx(0.25 * 0.8 + 0.75 * 0.4)
    assert score(0.8, 0.4, 1.0) == 0.8 and score(0.8, 0.4, 0.0) == 0.4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, 1.1, 1e9])
def test_what_is_out_of_range_fails_closed(bad):
    assert score(bad, 0.5, 0.5) == score(0.5, bad, 0.5) == 0.0


def test_settings_out_of_range_are_refused(mask):
    frames = np.zeros((2, SIZE, SIZE, 3))
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="tau: must be positive"):
            temporal_stability(frames, frames, mask, tau)
    with pytest.raises(ValueError, match="alpha: must lie in"):
        score(0.5, 0.5, 1.5)


def test_a_larger_tau_forgives_more(mask):
    real = render_clip(Person.draw(99, 2), 0, 1.0).frames
    generated = spoiled(real, mask, "noisy")
    low, high = (temporal_stability(generated, real, mask, tau) for tau in (2.0, 8.0))
    assert 0 < low < high < 1
