import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfedtalk_flare.data.windows import blend_weights, cover_windows, sample_window


@given(length=st.integers(1, 20), spare=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_the_reference_lies_in_the_clip_and_outside_the_window(length, spare, seed):
    frames = length + spare
    start, reference = sample_window(np.random.default_rng(seed), frames, length)
    assert start >= 0 and start + length <= frames
    assert 0 <= reference < frames
    assert not start <= reference < start + length


def test_every_start_and_every_reference_is_drawn_alike():
    rng = np.random.default_rng(0)
    draws = [sample_window(rng, 11, 8) for _ in range(6000)]
    starts = np.bincount([s for s, _ in draws], minlength=4)
    assert len(starts) == 4 and starts.min() > 1350
    of_start_1 = np.bincount([r for s, r in draws if s == 1], minlength=11)
    assert list(np.flatnonzero(of_start_1)) == [0, 9, 10] and of_start_1[[0, 9, 10]].min() > 400


@given(frames=st.integers(1, 300), length=st.integers(1, 24), data=st.data())
def test_windows_cover_the_clip_and_share_enough(frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    starts = cover_windows(frames, length, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, frames - length)
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= length - overlap).all()
    assert len(starts) == 1 + int(np.ceil(max(0, frames - length) / (length - overlap)))


@given(frames=st.integers(1, 200), length=st.integers(1, 24), data=st.data())
def test_weights_sum_to_one_and_fade_gently(frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    starts = cover_windows(frames, length, overlap)
    weights = blend_weights(starts, frames, length, overlap)
    assert weights.shape == (len(starts), length) and weights.dtype == np.float32 and (weights >= 0).all()
    laid = np.zeros((len(starts), frames + length))
    for row, start, own in zip(laid, starts, weights, strict=True):
        row[start : start + length] = own
    np.testing.assert_allclose(laid[:, :frames].sum(0), 1, atol=1e-6)
    assert not laid[:, frames:].any()
    assert np.abs(np.diff(laid[:, :frames], axis=1)).max(initial=0) <= 1 / (overlap + 1) + 1e-6


def test_windows_that_disagree_are_joined_without_a_jump():
    """Windows whose content is offset by 1 from each other: the blend never moves by more than a step of the ramp."""
    starts = cover_windows(50, 8, 4)
    weights = blend_weights(starts, 50, 8, 4)
    out = np.zeros(50)
    for i, (start, own) in enumerate(zip(starts, weights, strict=True)):
        out[start : start + 8] += own * (i % 2)
    assert np.abs(np.diff(out)).max() <= 1 / 5 + 1e-6


@pytest.mark.parametrize("frames, length", [(8, 8), (3, 8), (5, 0)])
def test_too_short_for_a_reference(frames, length):
    with pytest.raises(ValueError, match="at least"):
        sample_window(np.random.default_rng(0), frames, length)


def test_refusals():
    with pytest.raises(ValueError, match="overlap < length"):
        cover_windows(20, 8, 8)
    for starts in ([0, 12], [0, 5, 10, 12], [1, 5, 9, 12], [0, 4, 8], [0, 4, 4, 8, 12], []):
        with pytest.raises(ValueError, match=r"do not cover 20 frames sharing 4; take the starts"):
            blend_weights(starts, 20, 8, 4)
